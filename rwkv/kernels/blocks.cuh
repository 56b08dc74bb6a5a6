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
    DEVICE Block left() const { return {{x[0], x[2], x[1], x[3]}}; }
};

struct Sum {
    float x[2][2][2];  // column + 8, row + 8, column + 1
};

DEVICE int lane() { return thread() % 32; }
DEVICE int row_of_lane() { return lane() / 4; }
DEVICE int column_of_lane() { return lane() % 4 * 2; }

// [rows][COLUMNS] bf16 in shared memory; the 16-byte parts of a row are permuted so that 8 rows of a column lie in different banks.
template <int COLUMNS>
struct Tile {
    static_assert(COLUMNS == 32 || COLUMNS == 64, "");
    int start;  // elements before it, a multiple of 64
    static DEVICE int permuted(int row, int column) { return row * COLUMNS + (column ^ (COLUMNS == 64 ? row % 8 : row / 2 % 4) * 8); }
    DEVICE bf16* at(int row, int column) const { return (bf16*)shared_memory() + start + permuted(row, column); }
    DEVICE unsigned& pair(int row, int column) const { return *(unsigned*)at(row, column); }
    // Of row + i, column + j, where row and column are multiples of 16: what depends on the lane, i and j, is the same in all tiles, so computed once.
    DEVICE Address address_of(int row, int column, int i, int j) const {
        return (address(shared_memory()) + 2 * permuted(i, j) ^ 2 * column) + 2 * (start + row * COLUMNS);
    }
    DEVICE Address by_rows(int row, int column) const { return address_of(row, column, lane() % 16, lane() / 16 * 8); }
    DEVICE Address by_columns(int row, int column) const { return address_of(row, column, lane() % 8 + lane() / 16 * 8, lane() / 8 % 2 * 8); }
};

template <int COLUMNS>
DEVICE Block load(Tile<COLUMNS> tile, int row, int column) {
    Block block;
    load_8x8(block.x, tile.by_rows(row, column));
    return block;
}
template <int COLUMNS>
DEVICE Right load_right(Tile<COLUMNS> tile, int row, int column) {
    Right block;
    load_8x8(block.x, tile.by_columns(row, column));
    return block;
}

// The transposes of what these give.
template <int COLUMNS>
DEVICE Block load_transposed(Tile<COLUMNS> tile, int row, int column) {
    Block block;
    load_8x8_transposed(block.x, tile.by_columns(row, column));
    return block;
}
template <int COLUMNS>
DEVICE Right load_right_transposed(Tile<COLUMNS> tile, int row, int column) {
    Right block;
    load_8x8_transposed(block.x, tile.by_rows(row, column));
    return block;
}
DEVICE Block transposed(const Block& b) { return {{transposed_8x8(b.x[0]), transposed_8x8(b.x[2]), transposed_8x8(b.x[1]), transposed_8x8(b.x[3])}}; }

// sum += a b^T
DEVICE void multiply(Sum& sum, const Block& a, const Right& b) {
    mma_16x8x16(*(float(*)[4])sum.x[0], a.x, b.x[0], b.x[1]);
    mma_16x8x16(*(float(*)[4])sum.x[1], a.x, b.x[2], b.x[3]);
}

DEVICE void multiply_fp16(Sum& sum, const Block& a, const Right& b) {
    mma_16x8x16_fp16(*(float(*)[4])sum.x[0], a.x, b.x[0], b.x[1]);
    mma_16x8x16_fp16(*(float(*)[4])sum.x[1], a.x, b.x[2], b.x[3]);
}

// packed(low, high) gives a pair.
template <class Packed>
DEVICE Block rounded_by(const Sum& s, Packed packed) {
    return {{packed(s.x[0][0][0], s.x[0][0][1]), packed(s.x[0][1][0], s.x[0][1][1]), packed(s.x[1][0][0], s.x[1][0][1]), packed(s.x[1][1][0], s.x[1][1][1])}};
}
DEVICE Block rounded(const Sum& s) { return rounded_by(s, pack); }
DEVICE Block rounded_fp16(const Sum& s) { return rounded_by(s, pack_fp16); }

// What rounding took away, rounded.
DEVICE unsigned rest(float x0, float x1, unsigned of) { return pack(x0 - low(of), x1 - high(of)); }
DEVICE Block rest(const Sum& s, const Block& of) {
    Block r;
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) r.x[2 * n + m] = rest(s.x[n][m][0], s.x[n][m][1], of.x[2 * n + m]);
    return r;
}

template <int COLUMNS>
DEVICE void store(Tile<COLUMNS> tile, int row, int column, const Block& block) {
#ifdef STORES_8X8
    store_8x8(tile.by_rows(row, column), block.x);
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
