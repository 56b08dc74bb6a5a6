// Products of bf16 matrices in shared memory by one warp, in blocks of 16 x 16.
//
// A Block is in registers: lane l holds rows l/4 and l/4 + 8, columns 2(l%4), the next, and both + 8. A Sum of products is held alike in fp32.
#pragma once
#include "warp.cuh"

struct Block {
    unsigned x[4];  // pairs of columns: (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8)
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

// The transpose of what load gives.
template <int COLUMNS>
DEVICE Block load_transposed(Tile<COLUMNS> tile, int row, int column) {
    Block block;
    load_8x8_transposed(block.x, tile.at(row + lane() % 8 + lane() / 16 * 8, column + lane() / 8 % 2 * 8));
    return block;
}

// sum += a b^T
DEVICE void multiply(Sum& sum, const Block& a, const Block& b) {
    mma_16x8x16(*(float(*)[4])sum.x[0], a.x, b.x[0], b.x[2]);
    mma_16x8x16(*(float(*)[4])sum.x[1], a.x, b.x[1], b.x[3]);
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
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++)
        tile.pair(row + m * 8 + row_of_lane(), column + n * 8 + column_of_lane()) = block.x[2 * n + m];
}

// Zeroes what keep(row, column) does not keep.
template <class Keep>
DEVICE void mask(Sum& s, int row, int column, Keep keep) {
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int m = 0; m < 2; m++) UNROLL for (int e = 0; e < 2; e++)
        if (!keep(row + m * 8 + row_of_lane(), column + n * 8 + column_of_lane() + e)) s.x[n][m][e] = 0;
}
