// C[M, N] = A[M, K] B[K, N] with fp32 accumulation, for operands in scratch memory.
//
// A is row-major.  B of floats is row-major; B of bf16 holds pairs of rows interleaved, [K/2][N][2], which is what both
// VDPBF16PS and TDPBF16PS read.  M and N are multiples of 16; K of 32 for bf16.  Included per tier, after vector.h.

// A panel is kRows rows by up to three vectors of the tier's own width (the compiler keeps wider ones in memory), sized
// to the register file.  Its columns of B stay in the nearest cache while all rows of A pass.
#if AIM_AVX512
constexpr int kRows = 8, kLanes = 16;
#elif AIM_AVX2
constexpr int kRows = 4, kLanes = 8;
#else
constexpr int kRows = 4, kLanes = 4;
#endif
typedef float lanes __attribute__((vector_size(4 * kLanes)));
typedef float lanes_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

template <int vectors>
AIM_INLINE void panel(int64_t K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc) {
  lanes acc[kRows][vectors] = {};
  for (int64_t k = 0; k < K; ++k) {
    lanes b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) b[v] = *reinterpret_cast<const lanes_unaligned*>(B + k * ldb + kLanes * v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      lanes a = A[r * lda + k] - lanes{};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<lanes_unaligned*>(C + r * ldc + kLanes * v) = acc[r][v];
}

#if AIM_BF16
template <int vectors>
AIM_INLINE void panel(int64_t K, const bf16* A, int64_t lda, const bf16* B, int64_t ldb, float* C, int64_t ldc) {
  __m512 acc[kRows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < K; k += 2) {
    __m512bh b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) b[v] = (__m512bh)_mm512_loadu_si512(B + k * ldb + 32 * v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, A + r * lda + k, 4);
      __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(C + r * ldc + 16 * v, acc[r][v]);
}
#endif

template <int vectors, class E>
AIM_INLINE void column_of_panels(int64_t M, int64_t K, const E* A, int64_t lda, const E* B, int64_t ldb, float* C,
                                 int64_t ldc) {
  for (int64_t m = 0; m < M; m += kRows) panel<vectors>(K, A + m * lda, lda, B, ldb, C + m * ldc, ldc);
}

template <class E>
AIM_INLINE void product_by_panels(int64_t M, int64_t N, int64_t K, const E* A, int64_t lda, const E* B, int64_t ldb,
                                  float* C, int64_t ldc) {
  constexpr int64_t pair = 4 / sizeof(E);
  int64_t n = 0;
  for (; n + 3 * kLanes <= N; n += 3 * kLanes) column_of_panels<3>(M, K, A, lda, B + n * pair, ldb, C + n, ldc);
  if (N - n == 2 * kLanes) column_of_panels<2>(M, K, A, lda, B + n * pair, ldb, C + n, ldc);
  if (N - n == kLanes) column_of_panels<1>(M, K, A, lda, B + n * pair, ldb, C + n, ldc);
}

static void product(int64_t M, int64_t N, int64_t K, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                    int64_t ldc) {
  product_by_panels(M, N, K, A, lda, B, ldb, C, ldc);
}

#if AIM_AMX

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles belong to the thread: configured for one range of tasks and given back after it.
struct Tiles {
  Tiles() {
    TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

static void product(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t lda, const bf16* B, int64_t ldb, float* C,
                    int64_t ldc) {
  const int64_t a_bytes = 2 * lda, b_bytes = 4 * ldb, c_bytes = 4 * ldc;
  for (int64_t n = 0; n < N; n += 32) {
    const bool wide = N - n > 16;
    for (int64_t m = 0; m < M; m += 32) {
      const bool tall = M - m > 16;
      const bf16* a = A + m * lda;
      const bf16* b = B + n * 2;
      float* c = C + m * ldc + n;
      _tile_zero(0);
      if (wide) _tile_zero(1);
      if (tall) _tile_zero(2);
      if (wide && tall) _tile_zero(3);
      if (wide && tall) {
        for (int64_t k = 0; k < K; k += 32) {
          _tile_loadd(4, a + k, a_bytes);
          _tile_loadd(6, b + k * ldb, b_bytes);
          _tile_loadd(7, b + k * ldb + 32, b_bytes);
          _tile_loadd(5, a + 16 * lda + k, a_bytes);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      } else {
        for (int64_t k = 0; k < K; k += 32) {
          _tile_loadd(4, a + k, a_bytes);
          _tile_loadd(6, b + k * ldb, b_bytes);
          _tile_dpbf16ps(0, 4, 6);
          if (wide) {
            _tile_loadd(7, b + k * ldb + 32, b_bytes);
            _tile_dpbf16ps(1, 4, 7);
          }
          if (tall) {
            _tile_loadd(5, a + 16 * lda + k, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
          }
        }
      }
      _tile_stored(0, c, c_bytes);
      if (wide) _tile_stored(1, c + 16, c_bytes);
      if (tall) _tile_stored(2, c + 16 * ldc, c_bytes);
      if (wide && tall) _tile_stored(3, c + 16 * ldc + 16, c_bytes);
    }
  }
}

#else

struct Tiles {
  Tiles() {}
  ~Tiles() {}
};

#if AIM_BF16
static void product(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t lda, const bf16* B, int64_t ldb, float* C,
                    int64_t ldc) {
  product_by_panels(M, N, K, A, lda, B, ldb, C, ldc);
}
#endif

#endif
