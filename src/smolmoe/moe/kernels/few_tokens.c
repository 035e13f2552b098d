/* Experts and linear layers of a few tokens: every weight is read once, as it lies.
 *
 * project_T  y[r] = w[e] x[r] for the rows r of each expert e: x [R, in], w [E, out, in], y [R, out].
 * experts_T  a whole layer: SwiGLU experts chosen by token, weighted and added up.
 * gate_T     SwiGLU alone, gate_back_T its gradient: one pass each, for any number of rows.
 *
 * All tensors are contiguous, `in` is a multiple of 32, `out` at least 4. A tile is four rows of a weight by a few rows
 * of x, whose sums are in fp32 and stay in registers. The four lie a quarter of the weight apart, so that tiles read
 * four streams, each in the order of memory, which processors fetch ahead by themselves (four neighbours take turns in
 * one stream, which they do not follow). Where there is much to compute, that no longer runs far enough
 * ahead, and rows are asked for: into the second cache, since in the first they would push x out.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64 /* of a vector */
#define MOST 6   /* rows of x in a tile: four times as many sums, four parts of weights and one of x have registers */
#elif defined(__AVX2__)
#define BYTES 32
#define MOST 2
#else
#define BYTES 16
#define MOST 4
#endif
#define LANES (BYTES / 4)
#define PIECE 192 /* rows of a weight that one of several threads takes at a time */
#define ASKED 3   /* rows of x from which on rows of the weight are asked for, */
#define SOON 2    /* so many ahead */
#define INLINE static inline __attribute__((always_inline))

typedef float f32;
typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(BYTES)));
typedef uint32_t words __attribute__((vector_size(BYTES)));
typedef int32_t signs __attribute__((vector_size(BYTES)));
typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));

INLINE float sum(floats v) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)v);
#elif LANES == 8
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

/* A part of a weight, and its product with the same places of x added to `total`. */
typedef floats part_f32;
INLINE floats part_of_f32(const f32 *p) { floats v; memcpy(&v, p, BYTES); return v; }
INLINE floats add_f32(floats total, floats w, const f32 *x) { return total + w * part_of_f32(x); }
INLINE f32 round_f32(float value) { return value; }

#ifdef __AVX512BF16__
typedef __m512bh part_bf16;
INLINE __m512bh part_of_bf16(const bf16 *p) { return (__m512bh)_mm512_loadu_si512(p); }
INLINE floats add_bf16(floats total, __m512bh w, const bf16 *x) {
  return (floats)_mm512_dpbf16_ps((__m512)total, w, part_of_bf16(x));
}
#else
typedef words part_bf16;
INLINE words part_of_bf16(const bf16 *p) { words v; memcpy(&v, p, BYTES); return v; }
INLINE floats add_bf16(floats total, words w, const bf16 *x) { /* a bf16 is the upper half of an f32 */
  words right = part_of_bf16(x);
  total += (floats)(w << 16) * (floats)(right << 16);
  return total + (floats)(w & 0xffff0000u) * (floats)(right & 0xffff0000u);
}
#endif
INLINE bf16 round_bf16(float value) { /* to nearest, ties to even; sums of bf16 have no NaN that this overflows */
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define UPTO_1(F, T) F(0, T)
#define UPTO_2(F, T) UPTO_1(F, T) F(1, T)
#define UPTO_3(F, T) UPTO_2(F, T) F(2, T)
#define UPTO_4(F, T) UPTO_3(F, T) F(3, T)
#define UPTO_5(F, T) UPTO_4(F, T) F(4, T)
#define UPTO_6(F, T) UPTO_5(F, T) F(5, T)
#define START(m, T) floats a##m = {0}, b##m = {0}, c##m = {0}, d##m = {0};
#define ADD(m, T)                                                                                                      \
  a##m = add_##T(a##m, a, x + m * in + k), b##m = add_##T(b##m, b, x + m * in + k);                                    \
  c##m = add_##T(c##m, c, x + m * in + k), d##m = add_##T(d##m, d, x + m * in + k);
#define PUT(m, T)                                                                                                      \
  y[m * out] = round_##T(sum(a##m)), y[m * out + apart] = round_##T(sum(b##m));                                        \
  y[m * out + 2 * apart] = round_##T(sum(c##m)), y[m * out + 3 * apart] = round_##T(sum(d##m));
#define ASK(place) __builtin_prefetch(place, 0, 2)

/* y[m][n * apart] = w[n * apart] x[m] for four n and M rows m. */
#define TILE(T, M)                                                                                                     \
  static void tile_##T##_##M(const T *x, const T *w, int64_t apart, int64_t in, int64_t out, int64_t soon, T *y) {     \
    const T *second = w + apart * in, *third = second + apart * in, *fourth = third + apart * in;                      \
    const int64_t step = BYTES / (int)sizeof(T);                                                                       \
    UPTO_##M(START, T)                                                                                                 \
    for (int64_t k = 0; k < in; k += step) {                                                                           \
      if (soon) ASK(w + soon + k), ASK(second + soon + k), ASK(third + soon + k), ASK(fourth + soon + k);              \
      part_##T a = part_of_##T(w + k), b = part_of_##T(second + k);                                                    \
      part_##T c = part_of_##T(third + k), d = part_of_##T(fourth + k);                                                \
      UPTO_##M(ADD, T)                                                                                                 \
    }                                                                                                                  \
    UPTO_##M(PUT, T)                                                                                                   \
  }

#define PROJECT(T)                                                                                                     \
  TILE(T, 1) TILE(T, 2) TILE(T, 3) TILE(T, 4) TILE(T, 5) TILE(T, 6)                                                    \
  static void rows_##T(const T *x, const T *w, int64_t apart, int64_t in, int64_t out, int64_t rows, T *y) {           \
    for (int64_t m = 0; m < rows; m += MOST) {                                                                         \
      const T *left = x + m * in;                                                                                      \
      T *to = y + m * out;                                                                                             \
      int64_t soon = rows >= ASKED ? SOON * in : 0;                                                                    \
      switch (rows - m < MOST ? rows - m : MOST) {                                                                     \
        case 1: tile_##T##_1(left, w, apart, in, out, soon, to); break;                                                \
        case 2: tile_##T##_2(left, w, apart, in, out, soon, to); break;                                                \
        case 3: tile_##T##_3(left, w, apart, in, out, soon, to); break;                                                \
        case 4: tile_##T##_4(left, w, apart, in, out, soon, to); break;                                                \
        case 5: tile_##T##_5(left, w, apart, in, out, soon, to); break;                                                \
        default: tile_##T##_6(left, w, apart, in, out, soon, to);                                                      \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  /* `spans` [count, 3]: expert, first row, row after the last. */                                                     \
  void project_##T(const T *x, const T *w, const int64_t *spans, int64_t count, int64_t in, int64_t out, T *y,         \
                   int threads) {                                                                                      \
    int64_t piece = threads > 1 && out > PIECE ? PIECE : out, pieces = (out + piece - 1) / piece, apart = piece / 4;   \
    _Pragma("omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)")                                \
    for (int64_t task = 0; task < count * pieces; task++) {                                                            \
      const int64_t *span = spans + 3 * (task / pieces), rows = span[2] - span[1];                                     \
      int64_t first = task % pieces * piece;                                                                           \
      if (first > out - piece) first = out - piece; /* the last piece may compute some rows twice */                   \
      const T *left = x + span[1] * in, *right = w + (span[0] * out + first) * in;                                     \
      T *to = y + span[1] * out + first;                                                                               \
      for (int64_t n = 0; n < apart; n++) rows_##T(left, right + n * in, apart, in, out, rows, to + n);                \
      for (int64_t n = 4 * apart; n < piece; n++) rows_##T(left, right + (n - 3) * in, 1, in, out, rows, to + n - 3);  \
    }                                                                                                                  \
  }

PROJECT(f32)
PROJECT(bf16)

INLINE floats least(floats v, floats bound) { /* a NaN stays one */
  signs below = v < bound;
  return (floats)((below & (signs)bound) | (~below & (signs)v));
}

/* 2^n e^r with |r| <= ln 2 / 2, where eight terms of the series are as exact as an f32. */
INLINE floats exponential(floats v) {
  const float magic = 0x1.8p23f; /* adding it rounds to a whole number, which the lowest bits then hold */
  v = -least(-least(v, (floats){0} - 87.0f), (floats){0} - 89.0f);
  floats shifted = v * 0x1.715476p0f + magic, n = shifted - magic;
  floats r = v - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
  floats series = r * (1.0f / 5040) + 1.0f / 720;
  series = series * r + 1.0f / 120, series = series * r + 1.0f / 24, series = series * r + 1.0f / 6;
  series = series * r + 0.5f, series = series * r + 1.0f, series = series * r + 1.0f;
  return series * (floats)(((words)shifted << 23) + (127u << 23));
}

INLINE floats floats_f32(const f32 *p) { return part_of_f32(p); }
INLINE floats floats_bf16(const bf16 *p) {
  halves v;
  memcpy(&v, p, BYTES / 2);
  return (floats)(__builtin_convertvector(v, words) << 16);
}
INLINE void store_f32(f32 *p, floats v) { memcpy(p, &v, BYTES); }
INLINE void store_bf16(bf16 *p, floats v) {
  words bits = (words)v;
  halves rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
  memcpy(p, &rounded, BYTES / 2);
}

/* SwiGLU of [gate, up] rows: `inner` [R, I] of `pre` [R, 2I]; and the gradient of `pre` from that of `inner`, which is
 * made once more. */
#define GATE(T)                                                                                                        \
  void gate_##T(const T *pre, T *inner, int64_t rows, int64_t width, int threads) {                                    \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1)")                                                  \
    for (int64_t r = 0; r < rows; r++)                                                                                 \
      for (int64_t i = 0; i < width; i += LANES) {                                                                     \
        floats gate = floats_##T(pre + 2 * r * width + i), up = floats_##T(pre + (2 * r + 1) * width + i);             \
        store_##T(inner + r * width + i, gate * (1.0f / (exponential(-gate) + 1.0f)) * up);                            \
      }                                                                                                                \
  }                                                                                                                    \
  void gate_back_##T(const T *pre, const T *grad, T *inner, T *grad_pre, int64_t rows, int64_t width, int threads) {   \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1)")                                                  \
    for (int64_t r = 0; r < rows; r++)                                                                                 \
      for (int64_t i = 0; i < width; i += LANES) {                                                                     \
        int64_t first = 2 * r * width + i, second = first + width;                                                     \
        floats gate = floats_##T(pre + first), up = floats_##T(pre + second), from = floats_##T(grad + r * width + i); \
        floats share = 1.0f / (exponential(-gate) + 1.0f), opened = gate * share;                                      \
        store_##T(inner + r * width + i, opened * up);                                                                 \
        store_##T(grad_pre + first, from * up * (share + opened * (1.0f - share)));                                    \
        store_##T(grad_pre + second, from * opened);                                                                   \
      }                                                                                                                \
  }

GATE(f32)
GATE(bf16)

/* Choices in order of expert: `spans` as above, returned their number, and `row` [T*K], the row that a choice is. */
static int64_t sort(const int64_t *index, int64_t choices, int64_t experts, int64_t few, int64_t *spans, int64_t *row,
                    int64_t *start) {
  memset(start, 0, (experts + 1) * sizeof(int64_t));
  for (int64_t c = 0; c < choices; c++) {
    if (index[c] < 0 || index[c] >= experts) return 0;
    start[index[c] + 1]++;
  }
  int64_t count = 0;
  for (int64_t e = 0; e < experts; e++) {
    if (start[e + 1]) {
      int64_t *span = spans + 3 * count++;
      span[0] = e, span[1] = start[e], span[2] = start[e] + start[e + 1];
    }
    start[e + 1] += start[e];
  }
  for (int64_t c = 0; c < choices; c++) row[c] = start[index[c]]++;
  return choices <= few * count ? count : 0;
}

/* x, y [T, D], index and weights [T, K], up [E, 2I, D], down [E, D, I]; I too is a multiple of 32. Returns 0, with
 * nothing written, where experts have more than `few` rows on average, or an index is none. */
#define EXPERTS(T)                                                                                                     \
  int experts_##T(const T *x, const int64_t *index, const float *weights, const T *up, const T *down, T *y,            \
                  int64_t tokens, int64_t top_k, int64_t experts, int64_t size, int64_t width, int64_t few,            \
                  int threads) {                                                                                       \
    int64_t choices = tokens * top_k;                                                                                  \
    int64_t *spans = malloc((5 * choices + experts + 1) * sizeof(int64_t)), *row = spans + 3 * choices;                \
    T *held = malloc(choices * (2 * size + 3 * width) * sizeof(T));                                                    \
    int64_t count = spans && held ? sort(index, choices, experts, few, spans, row, row + choices) : 0;                 \
    T *in = held, *pre = in + choices * size, *inner = pre + choices * 2 * width, *out = inner + choices * width;      \
    if (count) {                                                                                                       \
      for (int64_t c = 0; c < choices; c++) memcpy(in + row[c] * size, x + c / top_k * size, size * sizeof(T));        \
      project_##T(in, up, spans, count, size, 2 * width, pre, threads);                                                \
      gate_##T(pre, inner, choices, width, threads);                                                                   \
      project_##T(inner, down, spans, count, width, size, out, threads);                                               \
      for (int64_t t = 0; t < tokens; t++)                                                                             \
        for (int64_t i = 0; i < size; i += LANES) {                                                                    \
          floats total = {0};                                                                                          \
          for (int64_t c = t * top_k; c < (t + 1) * top_k; c++)                                                        \
            total += weights[c] * floats_##T(out + row[c] * size + i);                                                 \
          store_##T(y + t * size + i, total);                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    free(spans), free(held);                                                                                           \
    return count > 0;                                                                                                  \
  }

EXPERTS(f32)
EXPERTS(bf16)
