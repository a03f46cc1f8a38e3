// What the CPU kernels compute, and the table of entry points that each instruction-set tier fills in.
//
// Every tier compiles the same templates (attention.h, elementwise.h) inside a namespace of its own with the compiler's
// target set to that tier; library.cpp picks one table when the library is loaded.  Nothing here may include a header
// with inline functions of external linkage: the linker would be free to keep the copy that needs AVX-512.
#pragma once

#include <cstdint>

namespace aim {

// Attention over L tokens for every (outer, inner, head).  Token l of a sequence lies at
// outer * qkv_outer + l * qkv_token + inner * qkv_inner; q, k, v are `qkv_part` apart and heads `qkv_head`.
// Strides count elements; the last axis (d) is contiguous.  out, dout: [outer, L, inner, h, d] with their own strides;
// lse: [outer, inner, h, L] contiguous; dqkv: [outer, L, inner, 3, h, d] contiguous.
struct Attention {
  int64_t outer, length, inner, heads, dim;
  int64_t qkv_outer, qkv_token, qkv_inner, qkv_part, qkv_head;
  int64_t out_outer, out_token, out_inner, out_head;
  int64_t dout_outer, dout_token, dout_inner, dout_head;
  float scale;
  const float* bias;  // [h, L, L rounded up to 16] by the scale, its transpose in backward; or null
  const void* qkv;
  void* out;         // written by forward, read by backward
  float* lse;        // natural logarithm of the sum of exponentials of the scaled scores
  const void* dout;  // backward only
  void* dqkv;        // backward only
  int64_t tasks() const { return outer * inner * heads; }
};

enum class Nonlinearity { quick_gelu, gelu, gelu_tanh };

// y[:, :split] = act(u[:, :split]), y[:, split:] = gelu(u[:, split:]) * factor[row]; rows of `width` elements.
// Gated, u is `split` wider: y[:, :split] = silu(u[:, :split]) * u[:, split:2 split], and the rest from 2 split on.
struct Activation {
  int64_t rows, width, split;
  Nonlinearity act;     // on the first columns, where they are not gated
  const float* factor;  // one per row, or null for 1
  const void* input;    // u; [rows, width - split] in a backward by slopes
  const void* grad;     // dy, backward only
  void* output;         // y, or du in backward
  uint8_t* slope;       // [rows, split]: derivatives of the frozen columns in a byte each, or null
};

// Rows of `width`; x and the residual stream may be fp32 while y is bf16.  Without a bias, and in backward without a
// mean, it is the RMS norm.
struct LayerNorm {
  int64_t rows, width;
  float eps;
  const void* input;
  const float* weight;
  const float* bias;
  float* mean;
  float* rstd;
  const void* grad;      // dy, backward only
  const void* residual;  // added to dx in backward, of dx's type, or null
  void* output;          // y, or dx in backward
};

// out = x + branch * factor[row], or out = x + branch + factor[row] * bias[column] where there is a bias.
struct Residual {
  int64_t rows, width;
  const void* input;    // x, of the output's type
  const void* branch;
  const float* factor;  // one per row, or null for 1
  const float* bias;    // or null
  void* output;
};

// [rows, 3, heads, dim] with the queries and keys of every token after the first `prefix` of each `tokens` rotated.
struct Rotation {
  int64_t rows, tokens, prefix, heads, dim;
  int64_t table_head;   // elements from one head's table to the next, 0 where all share one
  float sign;           // of the sines
  bool interleaved;     // pairs are neighbours; otherwise half a head apart
  const float* table;   // [tokens - prefix, dim]: dim / 2 sines, dim / 2 cosines
  const void* input;
  void* output;
};

// Sums of the columns of [rows, width], `stride` elements from row to row, in blocks of 64 rows.
struct ColumnSum {
  int64_t rows, width, stride;
  const void* input;
  float* output;
};
constexpr int64_t kColumnsPerTask = 64;

using Range = void (*)(int64_t begin, int64_t end, const void* problem);

struct Tier {
  const char* name;
  // [0] float32, [1] bfloat16
  Range attention_forward[2], attention_backward[2];
  Range activation_forward[2], activation_backward[2];
  Range activation_slope[2], slope_backward[2];
  Range swiglu_forward[2], swiglu_backward[2];
  // [input is bfloat16][output is bfloat16]; backward: [x is bfloat16][dy is bfloat16][dx and residual are bfloat16]
  Range layer_norm_forward[2][2], layer_norm_backward[2][2][2];
  Range residual[2][2];  // [x is bfloat16][branch is bfloat16]
  Range rotation[2];
  Range column_sum[2];
};

extern const Tier tier_generic;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AIM_X86_TIERS 1
extern const Tier tier_avx2, tier_avx512, tier_avx512_bf16;
#if __GNUC__ >= 11
#define AIM_AMX_TIER 1
extern const Tier tier_amx;
#endif
#endif

}  // namespace aim
