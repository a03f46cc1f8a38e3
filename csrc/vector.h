// Sixteen floats at a time, in the compiler's vector extension: one source for SSE2, AVX2, AVX-512 and NEON.
//
// Included once by each tier_*.cpp inside that tier's namespace, after its target has been set.  AIM_AVX2,
// AIM_AVX512 and AIM_BF16 say what the tier has: the compiler's own macros do not follow a pragma in C++ before GCC 13.

struct bf16 {
  uint16_t bits;
};

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint32_t u16vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint8_t b16u __attribute__((vector_size(16), aligned(1), may_alias));

#if defined(__clang__)
#define AIM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define AIM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, u16v{__VA_ARGS__})
#endif

#define AIM_INLINE static inline __attribute__((always_inline))

AIM_INLINE v16 splat(float x) { return x - v16{}; }

// Comparisons of vectors wider than the tier's own are made element by element by GCC, shifts and bit operations are
// not: masks come from sign bits.  A NaN has either sign, and -0.0f a set one: add 0.0f where that matters.
AIM_INLINE i16v negative(v16 x) { return (i16v)x >> 31; }
AIM_INLINE i16v invalid(v16 x) { return (0x7f800000 - ((i16v)x & 0x7fffffff)) >> 31; }
AIM_INLINE v16 select(i16v mask, v16 a, v16 b) { return (v16)((mask & (i16v)a) | (~mask & (i16v)b)); }
AIM_INLINE v16 load(const float* p) { return *reinterpret_cast<const v16u*>(p); }
AIM_INLINE v16 widen(h16 h) { return (v16)(__builtin_convertvector(h, u16v) << 16); }
AIM_INLINE v16 load(const bf16* p) { return widen(*reinterpret_cast<const h16u*>(p)); }
AIM_INLINE void store(float* p, v16 x) { *reinterpret_cast<v16u*>(p) = x; }

// Round to nearest even; a NaN stays a NaN.
AIM_INLINE h16 narrow(v16 x) {
#if AIM_BF16
  return (h16)_mm512_cvtneps_pbh((__m512)x);
#else
  u16v u = (u16v)x;
  u16v rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return __builtin_convertvector((u16v)select(invalid(x), (v16)((u >> 16) | 0x40), (v16)rounded), h16);
#endif
}
AIM_INLINE void store(bf16* p, v16 x) { *reinterpret_cast<h16u*>(p) = narrow(x); }

// Sixteen bytes, for values that lie between 0 and 255.
AIM_INLINE v16 load(const uint8_t* p) {
#if AIM_AVX512
  return (v16)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const b16u*>(p), i16v), v16);
#endif
}
AIM_INLINE void store(uint8_t* p, v16 x) {
#if AIM_AVX512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32((__m512)x)));
#else
  *reinterpret_cast<b16u*>(p) = __builtin_convertvector(__builtin_convertvector(x, i16v), b16);
#endif
}

AIM_INLINE float widen_one(float x) { return x; }
AIM_INLINE float widen_one(uint8_t x) { return x; }
AIM_INLINE float widen_one(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
AIM_INLINE void store_one(float* p, float x) { *p = x; }
AIM_INLINE void store_one(uint8_t* p, float x) { *p = static_cast<uint8_t>(x); }
AIM_INLINE void store_one(bf16* p, float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  p->bits = x == x ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : (u >> 16) | 0x40;
}

// The first `count` (1 to 15) elements; the rest read as zero and are not written.
template <class T>
AIM_INLINE v16 load_part(const T* p, int64_t count) {
  float buffer[16] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = widen_one(p[i]);
  return load(buffer);
}
template <class T>
AIM_INLINE void store_part(T* p, v16 x, int64_t count) {
  float buffer[16];
  store(buffer, x);
  for (int64_t i = 0; i < count; ++i) store_one(p + i, buffer[i]);
}

AIM_INLINE v16 maximum(v16 a, v16 b) {
#if AIM_AVX512
  return (v16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return select(negative(b - a), a, b);  // neither infinite nor NaN
#endif
}

AIM_INLINE float sum(v16 x) {
#if AIM_AVX512
  return _mm512_reduce_add_ps((__m512)x);
#else
  float buffer[16];
  store(buffer, x);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) buffer[i] += buffer[i + half];
  return buffer[0];
#endif
}
AIM_INLINE float largest(v16 x) {
#if AIM_AVX512
  return _mm512_reduce_max_ps((__m512)x);
#else
  float buffer[16];
  store(buffer, x);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) buffer[i] = buffer[i] > buffer[i + half] ? buffer[i] : buffer[i + half];
  return buffer[0];
#endif
}

// 2^x.  With f = x - floor(x) in [0, 1), 2^f is a minimax polynomial: relative error 7.5e-5 at degree 3 (a twenty-sixth
// of a bfloat16 rounding), 1.6e-7 at degree 5.  Below 2^-126 the result is 0; NaN stays NaN.
template <int degree>
AIM_INLINE v16 exp2(v16 x) {
#if AIM_AVX512
  v16 f = (v16)_mm512_reduce_ps((__m512)x, 0x09);
#else
  const i16v bad = invalid(x);
  const v16 given = x;
  x = select(negative(x + 126.0f), splat(-127.0f), x);
  x = select(negative(127.99f - x), splat(127.99f), x);
  i16v whole = __builtin_convertvector(x, i16v);
  v16 f = x - __builtin_convertvector(whole, v16) + 0.0f;
  i16v below = negative(f);
  whole += below;
  f += (v16)(below & (i16v)splat(1.0f));
#endif
  v16 p;
  if constexpr (degree == 3) {
    p = f * 7.802452e-2f + 2.2606716e-1f;
    p = p * f + 6.9583354e-1f;
    p = p * f + 9.9992522e-1f;
  } else {
    p = f * 1.8775767e-3f + 8.9893397e-3f;
    p = p * f + 5.5826318e-2f;
    p = p * f + 2.4015361e-1f;
    p = p * f + 6.9315308e-1f;
    p = p * f + 9.9999994e-1f;
  }
#if AIM_AVX512
  return (v16)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  v16 result = (v16)((i16v)p + (whole << 23));
  result = select(negative(x + 126.5f), splat(0.0f), result);
  return select(bad, given, result);
#endif
}

// 16 x 16 transpose of 32-bit elements, in four rounds of exchanging halves, quarters, pairs and neighbours.
template <int s>
AIM_INLINE void exchange(u16v* r) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & s) continue;
    u16v a = r[i], b = r[i + s];
    if constexpr (s == 8) {
      r[i] = AIM_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
      r[i + s] = AIM_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    } else if constexpr (s == 4) {
      r[i] = AIM_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      r[i + s] = AIM_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    } else if constexpr (s == 2) {
      r[i] = AIM_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[i + s] = AIM_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else {
      r[i] = AIM_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
      r[i + s] = AIM_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
  }
}

// dst[cols][rows] = src[rows][cols]; both multiples of 16.
static void transpose(int64_t rows, int64_t cols, const uint32_t* src, int64_t src_stride, uint32_t* dst,
                      int64_t dst_stride) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < cols; j += 16) {
      u16v r[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = *reinterpret_cast<const u16vu*>(src + (i + k) * src_stride + j);
      exchange<8>(r);
      exchange<4>(r);
      exchange<2>(r);
      exchange<1>(r);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) *reinterpret_cast<u16vu*>(dst + (j + k) * dst_stride + i) = r[k];
    }
}
