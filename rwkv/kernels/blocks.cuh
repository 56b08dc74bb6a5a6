// Products of bf16 matrices in shared memory by one warp, in blocks of 16 x 16.
//
// A Block is in registers: lane l holds rows l/4 and l/4 + 8, columns 2(l%4), the next, and both + 8. A Sum of products is held alike in fp32.
#pragma once
#include "warp.cuh"

struct Block {
    unsigned x[4];  // pairs of columns: (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8)
};

// A Block as the right side of a product: its second and third pair change places, for the machine takes a row's pairs from neighbouring registers.
struct Right {
    unsigned x[4];
    DEVICE Right() {}
    DEVICE Right(const Block& b) : x{b.x[0], b.x[2], b.x[1], b.x[3]} {}
};

struct Sum {
    float x[2][2][2];  // column + 8, row + 8, column + 1
};

// [rows][COLUMNS] bf16 in shared memory; the 16-byte parts of a row are permuted so that 8 rows of a column lie in different banks.
template <int COLUMNS>
struct Tile {
    static_assert(COLUMNS == 32 || COLUMNS == 64, "");
    bf16* memory;
    DEVICE bf16* at(int row, int column) const {
        int part = COLUMNS == 64 ? column / 8 ^ row % 8 : column / 8 ^ row / 2 % 4;
        return memory + row * COLUMNS + part * 8 + column % 8;
    }
    DEVICE unsigned& pair(int row, int column) const { return *(unsigned*)at(row, column); }
};

DEVICE int lane() { return thread() % 32; }
DEVICE int row_of_lane() { return lane() / 4; }
DEVICE int column_of_lane() { return lane() % 4 * 2; }

template <int COLUMNS>
DEVICE Block load(Tile<COLUMNS> tile, int row, int column) {
    Block block;
    load_8x8(block.x, tile.at(row + lane() % 16, column + lane() / 16 * 8));
    return block;
}
template <int COLUMNS>
DEVICE Right load_right(Tile<COLUMNS> tile, int row, int column) {
    Right block;
    load_8x8(block.x, tile.at(row + lane() % 8 + lane() / 16 * 8, column + lane() / 8 % 2 * 8));
    return block;
}

// The transposes of what these give.
template <int COLUMNS>
DEVICE Block load_transposed(Tile<COLUMNS> tile, int row, int column) {
    Block block;
    load_8x8_transposed(block.x, tile.at(row + lane() % 8 + lane() / 16 * 8, column + lane() / 8 % 2 * 8));
    return block;
}
template <int COLUMNS>
DEVICE Right load_right_transposed(Tile<COLUMNS> tile, int row, int column) {
    Right block;
    load_8x8_transposed(block.x, tile.at(row + lane() % 16, column + lane() / 16 * 8));
    return block;
}
DEVICE Block transposed(const Block& b) { return {{transposed_8x8(b.x[0]), transposed_8x8(b.x[2]), transposed_8x8(b.x[1]), transposed_8x8(b.x[3])}}; }

// sum += a b^T
DEVICE void multiply(Sum& sum, const Block& a, const Right& b) {
    mma_16x8x16(*(float(*)[4])sum.x[0], a.x, b.x[0], b.x[1]);
    mma_16x8x16(*(float(*)[4])sum.x[1], a.x, b.x[2], b.x[3]);
}

DEVICE Block rounded(const Sum& s) {
    return {{pack(s.x[0][0][0], s.x[0][0][1]), pack(s.x[0][1][0], s.x[0][1][1]), pack(s.x[1][0][0], s.x[1][0][1]), pack(s.x[1][1][0], s.x[1][1][1])}};
}

// What rounding took away, rounded.
DEVICE Block rest(const Sum& s, const Block& of) {
    Sum r;
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) {
        unsigned x = of.x[2 * n + m];
        r.x[n][m][0] = s.x[n][m][0] - low(x), r.x[n][m][1] = s.x[n][m][1] - high(x);
    }
    return rounded(r);
}

template <int COLUMNS>
DEVICE void store(Tile<COLUMNS> tile, int row, int column, const Block& block) {
#ifdef STORES_8X8
    store_8x8(tile.at(row + lane() % 16, column + lane() / 16 * 8), block.x);
#else
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++)
        tile.pair(row + m * 8 + row_of_lane(), column + n * 8 + column_of_lane()) = block.x[2 * n + m];
#endif
}

// Zeroes what lies in columns whose bits are not set in kept(row).
template <class Kept>
DEVICE void mask(Sum& s, int row, int column, Kept kept) {
    UNROLL for (int m = 0; m < 2; m++) {
        const unsigned bits = kept(row + m * 8 + row_of_lane()) >> column_of_lane();
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++)
            if (!(bits & 1u << (column + n * 8 + e))) s.x[n][m][e] = 0;
    }
}
