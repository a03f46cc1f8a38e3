// Attention of one head over one sequence as dense products on scratch tiles.  Included per tier, after product.h.
//
// Forward, for 32 queries at a time:  S = Q K^T;  P = 2^(c S - m);  O = P V / sum(P);  lse = (m + log2(sum P)) ln 2,
// with c = scale * log2(e).  Backward works on the transpose, so that the statistics of a query lie along the vector
// and P^T, dS^T are row-major operands as they come, for 32 keys at a time:
//     S^T = K Q^T;  P^T = 2^(c S^T - lse);  dP^T = V dO^T;  dS^T = P^T o (dP^T - D),  D_i = dO_i . O_i
//     dV = P^T dO;  dK = scale dS^T Q;  and at the end  dQ^T = scale K^T dS^T.
// A bias is added to S, and its transpose to S^T: divided by the scale, its rows padded to whole vectors.
// `E` is the type the products read: bf16 where the tier multiplies bf16, float otherwise.  `T` is the tensors' type.

constexpr int64_t kBlock = 32;
constexpr float kLog2e = 1.44269504088896f, kLn2 = 0.693147180559945f;

AIM_INLINE int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

template <class E>
struct Extents {
  int64_t length, dim;
  int64_t tokens = round_up(length, 16);                          // rows of a product
  int64_t depth_tokens = round_up(length, sizeof(E) == 2 ? 32 : 16);  // summed axis of a product
  int64_t width = round_up(dim, 16);
  int64_t depth = round_up(dim, sizeof(E) == 2 ? 32 : 16);
};

class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(static_cast<char*>(__builtin_malloc(bytes + 64))) {
    next_ = memory_ + (64 - reinterpret_cast<uintptr_t>(memory_) % 64);
    __builtin_memset(memory_, 0, bytes + 64);
  }
  ~Arena() { __builtin_free(memory_); }
  Arena(const Arena&) = delete;
  template <class X>
  X* take(int64_t count) {
    X* result = reinterpret_cast<X*>(next_);
    next_ += round_up(count * sizeof(X), 64);
    return result;
  }

 private:
  char* memory_;
  char* next_;
};

AIM_INLINE void copy_row(const float* src, float* dst, int64_t count) { __builtin_memcpy(dst, src, count * 4); }
AIM_INLINE void copy_row(const bf16* src, bf16* dst, int64_t count) { __builtin_memcpy(dst, src, count * 2); }
AIM_INLINE void copy_row(const bf16* src, float* dst, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(dst + i, load(src + i));
  for (; i < count; ++i) dst[i] = widen_one(src[i]);
}

// rows[tokens][stride] = tokens of x; the padding stays zero.
template <class T, class E>
static void gather(const T* x, int64_t x_stride, int64_t length, int64_t dim, E* rows, int64_t stride) {
  for (int64_t i = 0; i < length; ++i) copy_row(x + i * x_stride, rows + i * stride, dim);
}

// The product's B operand from row-major [depth][width]: a copy for floats, pairs of rows interleaved for bf16.
static void interleave(const float* rows, int64_t stride, int64_t depth, int64_t width, float* out) {
  for (int64_t i = 0; i < depth; ++i) __builtin_memcpy(out + i * width, rows + i * stride, width * 4);
}
AIM_INLINE u16v pair_up(h16 even, h16 odd) {
  return __builtin_convertvector(even, u16v) | (__builtin_convertvector(odd, u16v) << 16);
}
[[maybe_unused]] static void interleave(const bf16* rows, int64_t stride, int64_t depth, int64_t width, bf16* out) {
  for (int64_t i = 0; i < depth; i += 2)
    for (int64_t j = 0; j < width; j += 16) {
      h16 even = *reinterpret_cast<const h16u*>(rows + i * stride + j);
      h16 odd = *reinterpret_cast<const h16u*>(rows + (i + 1) * stride + j);
      *reinterpret_cast<u16vu*>(out + i * width + 2 * j) = pair_up(even, odd);
    }
}

// The B operand X^T from row-major X [tokens][depth]: 32-bit elements change places, be they floats or bf16 pairs.
template <class E>
AIM_INLINE void transpose_operand(const E* rows, int64_t tokens, int64_t depth, E* out) {
  constexpr int64_t pair = 4 / sizeof(E);
  transpose(tokens, depth / pair, reinterpret_cast<const uint32_t*>(rows), depth / pair,
            reinterpret_cast<uint32_t*>(out), tokens);
}

template <class T>
AIM_INLINE void write_row(const float* src, float factor, T* dst, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(dst + i, load(src + i) * factor);
  for (; i < count; ++i) store_one(dst + i, src[i] * factor);
}

AIM_INLINE void add_row(const float* src, float* dst, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) store(dst + i, load(dst + i) + load(src + i));
}

AIM_INLINE float log2_of(float x) { return __builtin_log2f(x); }

template <class T, class E>
static void attention_forward(int64_t begin, int64_t end, const void* problem) {
  const Attention& a = *static_cast<const Attention*>(problem);
  const Extents<E> n{a.length, a.dim};
  constexpr int degree = sizeof(T) == 2 ? 3 : 5;
  Arena arena(sizeof(E) * (2 * n.depth_tokens * n.depth + n.depth_tokens * n.depth + n.depth_tokens * n.width +
                           kBlock * n.depth_tokens) +
              4 * kBlock * (n.tokens + n.width) + 1024);
  E* q = arena.take<E>(n.depth_tokens * n.depth);
  E* rows = arena.take<E>(n.depth_tokens * n.depth);
  E* kt = arena.take<E>(n.depth * n.tokens);
  E* v = arena.take<E>(n.depth_tokens * n.width);
  E* p = arena.take<E>(kBlock * n.depth_tokens);
  float* s = arena.take<float>(kBlock * n.tokens);
  float* o = arena.take<float>(kBlock * n.width);
  const float c = a.scale * kLog2e;
  Tiles tiles;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task % a.heads, inner = task / a.heads % a.inner, outer = task / a.heads / a.inner;
    const T* x = static_cast<const T*>(a.qkv) + outer * a.qkv_outer + inner * a.qkv_inner + head * a.qkv_head;
    T* out = static_cast<T*>(a.out) + outer * a.out_outer + inner * a.out_inner + head * a.out_head;
    float* lse = a.lse + task * a.length;
    gather(x, a.qkv_token, a.length, a.dim, q, n.depth);
    gather(x + a.qkv_part, a.qkv_token, a.length, a.dim, rows, n.depth);
    transpose_operand(rows, n.tokens, n.depth, kt);
    gather(x + 2 * a.qkv_part, a.qkv_token, a.length, a.dim, rows, n.depth);
    interleave(rows, n.depth, n.depth_tokens, n.width, v);
    for (int64_t i0 = 0; i0 < a.length; i0 += kBlock) {
      const int64_t count = a.length - i0 < kBlock ? a.length - i0 : kBlock, padded = round_up(count, 16);
      product(padded, n.tokens, n.depth, q + i0 * n.depth, n.depth, kt, n.tokens, s, n.tokens);
      float inverse[kBlock];
      for (int64_t i = 0; i < count; ++i) {
        float* si = s + i * n.tokens;
        E* pi = p + i * n.depth_tokens;
        if (a.bias) add_row(a.bias + (head * a.length + i0 + i) * n.tokens, si, n.tokens);
        for (int64_t j = a.length; j < n.tokens; ++j) si[j] = -1e30f;
        v16 top = load(si);
        for (int64_t j = 16; j < n.tokens; j += 16) top = maximum(top, load(si + j));
        const float m = largest(top) * c;
        v16 total{};
        for (int64_t j = 0; j < n.tokens; j += 16) {
          v16 e = exp2<degree>(load(si + j) * c - m);
          total += e;
          store(pi + j, e);
        }
        const float t = sum(total);
        inverse[i] = 1.0f / t;
        lse[i0 + i] = (m + log2_of(t)) * kLn2;
      }
      product(padded, n.width, n.depth_tokens, p, n.depth_tokens, v, n.width, o, n.width);
      for (int64_t i = 0; i < count; ++i) write_row(o + i * n.width, inverse[i], out + (i0 + i) * a.out_token, a.dim);
    }
  }
}

// dS^T, two rows at a time: row-major for dK, and as the B operand of dQ^T.
AIM_INLINE void store_pair(v16 even, v16 odd, int64_t column, float* row, int64_t stride, float* operand,
                           int64_t operand_stride) {
  store(operand + column, even);
  store(operand + operand_stride + column, odd);
  store(row + column, even);
  store(row + stride + column, odd);
}
AIM_INLINE void store_pair(v16 even, v16 odd, int64_t column, bf16* row, int64_t stride, bf16* operand,
                           int64_t operand_stride) {
  h16 a = narrow(even), b = narrow(odd);
  *reinterpret_cast<h16u*>(row + column) = a;
  *reinterpret_cast<h16u*>(row + stride + column) = b;
  *reinterpret_cast<u16vu*>(operand + 2 * column) = pair_up(a, b);
}

template <class T, class E>
static void attention_backward(int64_t begin, int64_t end, const void* problem) {
  const Attention& a = *static_cast<const Attention*>(problem);
  const Extents<E> n{a.length, a.dim};
  constexpr int degree = sizeof(T) == 2 ? 3 : 5;
  Arena arena(sizeof(E) * (7 * n.depth_tokens * n.depth + 3 * n.depth_tokens * n.width + 2 * kBlock * n.depth_tokens +
                           n.depth_tokens * n.tokens) +
              4 * (2 * kBlock * n.tokens + kBlock * n.width + 2 * n.tokens * n.width + 2 * n.tokens) + 4096);
  const int64_t operand = n.depth_tokens * n.depth;
  E *q = arena.take<E>(operand), *k = arena.take<E>(operand), *v = arena.take<E>(operand), *g = arena.take<E>(operand);
  E *qt = arena.take<E>(operand), *gt = arena.take<E>(operand);
  E *qp = arena.take<E>(n.depth_tokens * n.width), *gp = arena.take<E>(n.depth_tokens * n.width);
  E* ka = arena.take<E>(n.depth_tokens * n.width);
  E* p = arena.take<E>(kBlock * n.depth_tokens);
  E* ds = arena.take<E>(kBlock * n.depth_tokens);
  E* dst = arena.take<E>(n.depth_tokens * n.tokens);
  float* s = arena.take<float>(kBlock * n.tokens);
  float* dp = arena.take<float>(kBlock * n.tokens);
  float* d = arena.take<float>(kBlock * n.width);
  float *dqt = arena.take<float>(n.width * n.tokens), *dq = arena.take<float>(n.tokens * n.width);
  float *lse2 = arena.take<float>(n.tokens), *delta = arena.take<float>(n.tokens);
  constexpr int64_t pair = 4 / sizeof(E);
  const float c = a.scale * kLog2e;
  const int64_t part = a.heads * a.dim, token = a.inner * 3 * part;
  Tiles tiles;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t head = task % a.heads, inner = task / a.heads % a.inner, outer = task / a.heads / a.inner;
    const T* x = static_cast<const T*>(a.qkv) + outer * a.qkv_outer + inner * a.qkv_inner + head * a.qkv_head;
    const T* out = static_cast<const T*>(a.out) + outer * a.out_outer + inner * a.out_inner + head * a.out_head;
    const T* dout = static_cast<const T*>(a.dout) + outer * a.dout_outer + inner * a.dout_inner + head * a.dout_head;
    const float* lse = a.lse + task * a.length;
    T* dx = static_cast<T*>(a.dqkv) + outer * a.length * token + inner * 3 * part + head * a.dim;
    gather(x, a.qkv_token, a.length, a.dim, q, n.depth);
    gather(x + a.qkv_part, a.qkv_token, a.length, a.dim, k, n.depth);
    gather(x + 2 * a.qkv_part, a.qkv_token, a.length, a.dim, v, n.depth);
    gather(dout, a.dout_token, a.length, a.dim, g, n.depth);
    transpose_operand(q, n.tokens, n.depth, qt);
    transpose_operand(g, n.tokens, n.depth, gt);
    interleave(k, n.depth, n.depth_tokens, n.width, qp);
    transpose(n.depth_tokens / pair, n.width, reinterpret_cast<const uint32_t*>(qp), n.width,
              reinterpret_cast<uint32_t*>(ka), n.depth_tokens / pair);
    interleave(q, n.depth, n.depth_tokens, n.width, qp);
    interleave(g, n.depth, n.depth_tokens, n.width, gp);
    for (int64_t i = 0; i < a.length; ++i) {
      lse2[i] = lse[i] * kLog2e;
      const T *gi = dout + i * a.dout_token, *oi = out + i * a.out_token;
      v16 dot{};
      int64_t j = 0;
      for (; j + 16 <= a.dim; j += 16) dot += load(gi + j) * load(oi + j);
      float total = sum(dot);
      for (; j < a.dim; ++j) total += widen_one(gi[j]) * widen_one(oi[j]);
      delta[i] = total;
    }
    for (int64_t i = a.length; i < n.tokens; ++i) lse2[i] = 1e30f;
    for (int64_t j0 = 0; j0 < a.length; j0 += kBlock) {
      const int64_t count = a.length - j0 < kBlock ? a.length - j0 : kBlock, padded = round_up(count, 16);
      product(padded, n.tokens, n.depth, k + j0 * n.depth, n.depth, qt, n.tokens, s, n.tokens);
      product(padded, n.tokens, n.depth, v + j0 * n.depth, n.depth, gt, n.tokens, dp, n.tokens);
      if (a.bias)
        for (int64_t r = 0; r < count; ++r)
          add_row(a.bias + (head * a.length + j0 + r) * n.tokens, s + r * n.tokens, n.tokens);
      for (int64_t r = 0; r < padded; r += 2) {
        // A key beyond the last must not reach dQ: its probability would be 2^-lse, of any size.
        const bool even = r < count, odd = r + 1 < count;
        E *pr = p + r * n.depth_tokens, *dsr = ds + r * n.depth_tokens, *dstr = dst + (j0 + r) * n.tokens;
        for (int64_t i = 0; i < n.tokens; i += 16) {
          v16 l = load(lse2 + i), big = load(delta + i), p0{}, p1{}, ds0{}, ds1{};
          if (even) {
            p0 = exp2<degree>(load(s + r * n.tokens + i) * c - l);
            ds0 = p0 * (load(dp + r * n.tokens + i) - big);
          }
          if (odd) {
            p1 = exp2<degree>(load(s + (r + 1) * n.tokens + i) * c - l);
            ds1 = p1 * (load(dp + (r + 1) * n.tokens + i) - big);
          }
          store(pr + i, p0);
          store(pr + n.depth_tokens + i, p1);
          store_pair(ds0, ds1, i, dsr, n.depth_tokens, dstr, n.tokens);
        }
      }
      product(padded, n.width, n.depth_tokens, p, n.depth_tokens, gp, n.width, d, n.width);
      for (int64_t i = 0; i < count; ++i) write_row(d + i * n.width, 1.0f, dx + (j0 + i) * token + 2 * part, a.dim);
      product(padded, n.width, n.depth_tokens, ds, n.depth_tokens, qp, n.width, d, n.width);
      for (int64_t i = 0; i < count; ++i) write_row(d + i * n.width, a.scale, dx + (j0 + i) * token + part, a.dim);
    }
    product(n.width, n.tokens, n.depth_tokens, ka, n.depth_tokens, dst, n.tokens, dqt, n.tokens);
    transpose(n.width, n.tokens, reinterpret_cast<const uint32_t*>(dqt), n.tokens, reinterpret_cast<uint32_t*>(dq),
              n.width);
    for (int64_t i = 0; i < a.length; ++i) write_row(dq + i * n.width, a.scale, dx + i * token, a.dim);
  }
}
