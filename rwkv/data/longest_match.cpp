// Greedy longest match by a double-array trie.
//
// A walk starts at the entry for the text's next two bytes and goes from cell to cell: the child by byte b of a cell is
// cells[base + b], if that has label b. A base belongs to one cell alone, so the label alone tells whose child it is. Every cell
// knows the longest token on the way to it and how many bytes of that way lie behind the token: where a walk ends, the token is
// known. Cells are laid out depth first and 8 bytes small, for the time goes into cache misses: a walk meets few lines.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

namespace {

constexpr uint16_t EMPTY = 256;   // the label that no byte has
constexpr size_t LEAF = 0;        // the base of cells without children: the first 256 cells stay empty
constexpr size_t WINDOW = 64;    // cells behind the last one in which a gap is looked for

struct Cell {
    uint32_t base_back = LEAF << 8;  // base << 8 | bytes behind the token
    uint16_t id = 0;
    uint16_t label = EMPTY;
    size_t base() const { return base_back >> 8; }
    size_t back() const { return base_back & 255; }
};

struct Token {
    std::string_view bytes;
    uint16_t id;
};

struct Trie {
    std::vector<Cell> pairs = std::vector<Cell>(1 << 16);  // by the first byte and 256 times the second
    std::vector<Cell> cells = std::vector<Cell>(512);
    uint16_t single[256] = {};

    explicit Trie(std::vector<Token> sorted) : tokens(std::move(sorted)) {
        for (const Token& t : tokens)
            if (t.bytes.size() == 1) single[uint8_t(t.bytes[0])] = t.id;
        for (int i = 0; i < 1 << 16; ++i) {
            pairs[i].id = single[i & 255];
            pairs[i].base_back = LEAF << 8 | 1;
        }
        for (size_t i = 0, j; i < tokens.size(); i = j) {
            j = same_byte(i, tokens.size(), 0);
            size_t k = i + (tokens[i].bytes.size() == 1);
            for (size_t m; k < j; k = m) {
                m = same_byte(k, j, 1);
                Cell& pair = pairs[uint8_t(tokens[k].bytes[0]) | uint8_t(tokens[k].bytes[1]) << 8];
                pair = node(k, m, 2, pair.id, 0, EMPTY);
            }
        }
        tokens = {};
        base_taken = {};
    }

    // Appends the ids of text[0 .. size) to out, one at most for each byte.
    uint16_t* encode(const uint8_t* p, size_t size, uint16_t* out) const {
        const Cell* const at = cells.data();
        const uint8_t* const end = p + size;
        while (p + 1 < end) {
            Cell cell = pairs[p[0] | p[1] << 8];
            p += 2;
            while (p < end) {
                const Cell next = at[cell.base() + *p];
                if (next.label != *p) break;
                cell = next;
                ++p;
            }
            *out++ = cell.id;
            p -= cell.back();
        }
        if (p < end) *out++ = single[*p];
        return out;
    }

  private:
    std::vector<Token> tokens;  // sorted; while building
    std::vector<bool> base_taken = std::vector<bool>(1 << 16);
    size_t last = 256, first_gap = 256;  // there is always a cell behind the last one

    // The end of the tokens from i on, below hi, that have the same byte at `depth`; they share those before it.
    size_t same_byte(size_t i, size_t hi, size_t depth) const {
        const char byte = tokens[i].bytes[depth];
        do ++i;
        while (i < hi && tokens[i].bytes[depth] == byte);
        return i;
    }

    // The cell of the tokens [lo, hi), which share `depth` bytes; `id` and `back` are its parent's, back counted to here.
    Cell node(size_t lo, size_t hi, size_t depth, uint16_t id, size_t back, uint16_t label) {
        ++back;
        if (tokens[lo].bytes.size() == depth) {
            id = tokens[lo++].id;
            back = 0;
        }
        std::vector<std::pair<uint8_t, size_t>> children;  // label, first token
        for (size_t i = lo; i < hi; i = same_byte(i, hi, depth)) children.emplace_back(tokens[i].bytes[depth], i);
        const size_t base = children.empty() ? LEAF : take_base(children);
        for (size_t n = 0; n < children.size(); ++n) {
            const auto [byte, first] = children[n];
            const size_t next = n + 1 < children.size() ? children[n + 1].second : hi;
            const Cell child = node(first, next, depth + 1, id, back, byte);
            cells[base + byte] = child;
        }
        Cell cell;
        cell.base_back = uint32_t(base << 8 | back);
        cell.id = id;
        cell.label = label;
        return cell;
    }

    // A base that no other cell has and at which all children find empty cells, which are theirs from now on.
    size_t take_base(const std::vector<std::pair<uint8_t, size_t>>& children) {
        while (cells[first_gap].label != EMPTY) ++first_gap;
        for (size_t gap = std::max(first_gap, last - std::min(last, WINDOW));; ++gap) {
            if (cells.size() <= gap + 256) {
                cells.resize(gap + (1 << 16));
                base_taken.resize(cells.size());
            }
            if (cells[gap].label != EMPTY) continue;
            const size_t base = gap - children[0].first;  // above LEAF, for gaps begin at 256
            const auto fits = [&](auto child) { return cells[base + child.first].label == EMPTY; };
            if (base_taken[base] || !std::all_of(children.begin(), children.end(), fits)) continue;
            if (base >> 24) throw std::length_error("cells");
            base_taken[base] = true;
            for (const auto& child : children) cells[base + child.first].label = child.first;
            last = std::max(last, base + children.back().first);
            return base;
        }
    }
};

}  // namespace

extern "C" {

// The trie of n tokens, their bytes one behind the other; all 256 single bytes are among them. Null: no memory, or too many cells.
void* rwkv_trie_new(const char* bytes, const int64_t* sizes, const uint16_t* ids, int64_t n) try {
    std::vector<Token> tokens;
    for (int64_t i = 0; i < n; bytes += sizes[i++]) tokens.push_back({{bytes, size_t(sizes[i])}, ids[i]});
    std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) { return a.bytes < b.bytes; });
    return new Trie(std::move(tokens));
} catch (const std::exception&) {
    return nullptr;
}

void rwkv_trie_free(void* trie) { delete static_cast<Trie*>(trie); }

// Writes the ids of a text; `out` has room for an id a byte. Returns their number.
int64_t rwkv_trie_encode(const void* trie, const uint8_t* text, int64_t size, uint16_t* out) {
    return static_cast<const Trie*>(trie)->encode(text, size_t(size), out) - out;
}

// The same for n texts, one behind the other in `text` as in `out`; `counts` becomes the number of ids of each. With `end` an id 0 is
// behind each, counted and with room in `out`.
int64_t rwkv_trie_encode_batch(const void* trie, const uint8_t* text, const int64_t* sizes, int64_t n, bool end, uint16_t* out, int64_t* counts) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; text += sizes[i++]) {
        counts[i] = rwkv_trie_encode(trie, text, sizes[i], out + total);
        if (end) out[total + counts[i]++] = 0;
        total += counts[i];
    }
    return total;
}

}  // extern "C"
