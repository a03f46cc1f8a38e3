// The operators of namespace aim_cpu, on torch's stable ABI: argument checks, the choice of tier, threads.
//
//   attention_forward(qkv [O, L, I, 3, h, d], bias?) -> out [O, L, I, h, d], lse [O, I, h, L]
//   attention_backward(dout, qkv, out, lse, transposed bias?) -> dqkv, contiguous
//   activation_forward(u [M, H], split, act, factor [M]?) -> y;  activation_backward(dy, u, ...) -> du
//   activation_slope(u [M, H], split, act, factor [M]?) -> y, slope [M, split] uint8
//   slope_backward(dy [M, H], slope, own [M, H - split], factor [M]?) -> du
//   swiglu_forward(u [M, split + H], split, factor [M]?) -> y [M, H];  swiglu_backward(dy, u, ...) -> du
//   layer_norm_forward(x [M, D], weight, bias, eps, low) -> y, mean, rstd; without bias the RMS norm, mean [0]
//   layer_norm_backward(dy, x, weight, mean, rstd, residual?) -> dx, of the residual's dtype
//   residual(x [M, D], branch [M, D], factor [M]?, bias [D]?) -> x + branch factor, or x + branch + factor bias
//   rotation(qkv [B, T, N, 3D], table [P, d] or [h, P, d], heads, interleaved, inverse) -> qkv, q and k rotated
//   column_sum(x [M, D]) -> float32 [D]
//   tier() -> name;  set_tier(name)
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

#if AIM_AMX_TIER && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// found by aim_kernels.sources in the file of the build, before it is loaded
[[gnu::used]] const char built_from[] = AIM_SOURCES;

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Linux hands out the tile registers on request, once for the whole process.
bool tiles_granted() {
#if AIM_AMX_TIER && defined(__linux__)
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

#if AIM_AMX_TIER
// Bits 22 and 24 of EDX of CPUID leaf 7: AMX-BF16 and AMX-TILE (the compiler's names for them differ between versions).
bool has_amx() {
  unsigned eax = 7, ebx, ecx = 0, edx;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (edx >> 22 & 1) && (edx >> 24 & 1);
}
#endif

std::vector<const aim::Tier*> available_tiers() {
  std::vector<const aim::Tier*> tiers{&aim::tier_generic};
#if AIM_X86_TIERS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return tiers;
  tiers.push_back(&aim::tier_avx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return tiers;
  tiers.push_back(&aim::tier_avx512);
  if (!__builtin_cpu_supports("avx512bf16")) return tiers;
  tiers.push_back(&aim::tier_avx512_bf16);
#if AIM_AMX_TIER
  if (has_amx() && tiles_granted()) tiers.push_back(&aim::tier_amx);
#endif
#endif
  return tiers;
}

const std::vector<const aim::Tier*>& tiers() {
  static const std::vector<const aim::Tier*> found = available_tiers();
  return found;
}

const aim::Tier*& current() {
  static const aim::Tier* chosen = tiers().back();
  return chosen;
}

std::string tier() { return current()->name; }

void set_tier(std::string name) {
  for (const aim::Tier* candidate : tiers())
    if (name == candidate->name) {
      current() = candidate;
      return;
    }
  std::string known;
  for (const aim::Tier* candidate : tiers()) known += std::string(" ") + candidate->name;
  STD_TORCH_CHECK(false, "set_tier: this processor has no tier '", name, "'; it has", known);
}

// 0 for float32, 1 for bfloat16.
int low(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor");
  if (x.scalar_type() == ScalarType::Float) return 0;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, name, ": expected float32 or bfloat16");
  return 1;
}

template <class Problem>
void run(aim::Range kernel, int64_t count, int64_t grain, const Problem& problem) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { kernel(begin, end, &problem); });
}

aim::Attention attention(const Tensor& qkv, const Tensor& out, const Tensor& lse) {
  STD_TORCH_CHECK(qkv.dim() == 6 && qkv.size(3) == 3, "attention: qkv must be [O, L, I, 3, h, d]");
  STD_TORCH_CHECK(qkv.stride(5) == 1 || qkv.size(5) == 1, "attention: the last axis of qkv must be contiguous");
  aim::Attention a{};
  a.outer = qkv.size(0), a.length = qkv.size(1), a.inner = qkv.size(2), a.heads = qkv.size(4), a.dim = qkv.size(5);
  a.qkv_outer = qkv.stride(0), a.qkv_token = qkv.stride(1), a.qkv_inner = qkv.stride(2);
  a.qkv_part = qkv.stride(3), a.qkv_head = qkv.stride(4);
  a.out_outer = out.stride(0), a.out_token = out.stride(1), a.out_inner = out.stride(2), a.out_head = out.stride(3);
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.dim)));
  a.qkv = qkv.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  return a;
}

const float* score_bias(const std::optional<Tensor>& bias, const aim::Attention& a) {
  const int64_t padded = (a.length + 15) / 16 * 16;
  STD_TORCH_CHECK(!bias || (!low(*bias, "attention: bias") && bias->is_contiguous() && bias->dim() == 3 &&
                            bias->size(0) == a.heads && bias->size(1) == a.length && bias->size(2) == padded),
                  "attention: bias must be contiguous float32 [h, L, L rounded up to 16]");
  return bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
}

std::tuple<Tensor, Tensor> attention_forward(Tensor qkv, std::optional<Tensor> bias) {
  const int kind = low(qkv, "attention: qkv");
  STD_TORCH_CHECK(qkv.dim() == 6, "attention: qkv must be [O, L, I, 3, h, d]");
  const int64_t O = qkv.size(0), L = qkv.size(1), I = qkv.size(2), h = qkv.size(4), d = qkv.size(5);
  Tensor out = torch::stable::new_empty(qkv, {O, L, I, h, d});
  Tensor lse = torch::stable::new_empty(qkv, {O, I, h, L}, ScalarType::Float);
  aim::Attention a = attention(qkv, out, lse);
  a.bias = score_bias(bias, a);
  if (out.numel()) run(current()->attention_forward[kind], a.tasks(), 1, a);
  return {out, lse};
}

Tensor attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, std::optional<Tensor> bias) {
  const int kind = low(qkv, "attention: qkv");
  STD_TORCH_CHECK(low(dout, "attention: dout") == kind && low(out, "attention: out") == kind && !low(lse, "lse"),
                  "attention: dout and out must have qkv's dtype, lse float32");
  STD_TORCH_CHECK(qkv.dim() == 6 && dout.dim() == 5 && out.dim() == 5 && lse.is_contiguous(),
                  "attention: expected qkv [O, L, I, 3, h, d], dout and out [O, L, I, h, d], contiguous lse");
  const int64_t O = qkv.size(0), L = qkv.size(1), I = qkv.size(2), h = qkv.size(4), d = qkv.size(5);
  for (const Tensor* x : {&dout, &out}) {
    STD_TORCH_CHECK(x->size(0) == O && x->size(1) == L && x->size(2) == I && x->size(3) == h && x->size(4) == d,
                    "attention: dout and out must be [O, L, I, h, d] of qkv's sizes");
    STD_TORCH_CHECK(x->stride(4) == 1 || d == 1, "attention: the last axis of dout and out must be contiguous");
  }
  STD_TORCH_CHECK(lse.numel() == O * I * h * L, "attention: lse must be [O, I, h, L]");
  Tensor dqkv = torch::stable::new_empty(qkv, {O, L, I, 3, h, d});
  aim::Attention a = attention(qkv, out, lse);
  a.dout = dout.const_data_ptr(), a.dqkv = dqkv.mutable_data_ptr();
  a.dout_outer = dout.stride(0), a.dout_token = dout.stride(1), a.dout_inner = dout.stride(2);
  a.dout_head = dout.stride(3), a.bias = score_bias(bias, a);
  if (dqkv.numel()) run(current()->attention_backward[kind], a.tasks(), 1, a);
  return dqkv;
}

void check_factor(const std::optional<Tensor>& factor, int64_t rows) {
  STD_TORCH_CHECK(!factor || (!low(*factor, "factor") && factor->is_contiguous() && factor->numel() == rows),
                  "activation: factor must be contiguous float32 [M]");
}

aim::Nonlinearity nonlinearity(const std::string& name) {
  if (name == "quick_gelu") return aim::Nonlinearity::quick_gelu;
  if (name == "gelu_tanh") return aim::Nonlinearity::gelu_tanh;
  STD_TORCH_CHECK(name == "gelu", "activation: '", name, "' is none of quick_gelu, gelu, gelu_tanh");
  return aim::Nonlinearity::gelu;
}

// `width` of y and dy; u, and du, are as wide, or where it is gated `split` wider.
aim::Activation activation(const Tensor* dy, const Tensor& u, int64_t width, int64_t split,
                           const std::optional<Tensor>& factor) {
  const int kind = low(u, "activation: u");
  STD_TORCH_CHECK(u.dim() == 2 && u.is_contiguous(), "activation: u must be contiguous [M, H]");
  STD_TORCH_CHECK(0 <= split && split <= width, "activation: split must lie between 0 and H");
  STD_TORCH_CHECK(!dy || (low(*dy, "activation: dy") == kind && dy->is_contiguous() && dy->dim() == 2 &&
                          dy->size(0) == u.size(0) && dy->size(1) == width),
                  "activation: dy must be contiguous, of y's shape and u's dtype");
  check_factor(factor, u.size(0));
  aim::Activation a{};
  a.rows = u.size(0), a.width = width, a.split = split;
  a.factor = factor ? static_cast<const float*>(factor->const_data_ptr()) : nullptr;
  a.input = u.const_data_ptr(), a.grad = dy ? dy->const_data_ptr() : nullptr;
  return a;
}

Tensor activated(const Tensor* dy, const Tensor& u, int64_t split, const std::string& act,
                 const std::optional<Tensor>& factor) {
  aim::Activation a = activation(dy, u, u.size(1), split, factor);
  Tensor y = torch::stable::new_empty(u, {u.size(0), u.size(1)});
  a.act = nonlinearity(act), a.output = y.mutable_data_ptr();
  const int kind = low(u, "activation: u");
  const aim::Tier& t = *current();
  if (u.numel()) run(dy ? t.activation_backward[kind] : t.activation_forward[kind], a.rows, 8, a);
  return y;
}

Tensor activation_forward(Tensor u, int64_t split, std::string act, std::optional<Tensor> factor) {
  return activated(nullptr, u, split, act, factor);
}

Tensor activation_backward(Tensor dy, Tensor u, int64_t split, std::string act, std::optional<Tensor> factor) {
  return activated(&dy, u, split, act, factor);
}

std::tuple<Tensor, Tensor> activation_slope(Tensor u, int64_t split, std::string act, std::optional<Tensor> factor) {
  aim::Activation a = activation(nullptr, u, u.size(1), split, factor);
  Tensor y = torch::stable::new_empty(u, {u.size(0), u.size(1)});
  Tensor slope = torch::stable::new_empty(u, {u.size(0), split}, ScalarType::Byte);
  a.act = nonlinearity(act), a.output = y.mutable_data_ptr();
  a.slope = static_cast<uint8_t*>(slope.mutable_data_ptr());
  if (u.numel()) run(current()->activation_slope[low(u, "activation: u")], a.rows, 8, a);
  return {y, slope};
}

Tensor swiglu_forward(Tensor u, int64_t split, std::optional<Tensor> factor) {
  aim::Activation a = activation(nullptr, u, u.size(1) - split, split, factor);
  Tensor y = torch::stable::new_empty(u, {a.rows, a.width});
  a.output = y.mutable_data_ptr();
  if (u.numel()) run(current()->swiglu_forward[low(u, "activation: u")], a.rows, 8, a);
  return y;
}

Tensor swiglu_backward(Tensor dy, Tensor u, int64_t split, std::optional<Tensor> factor) {
  aim::Activation a = activation(&dy, u, u.size(1) - split, split, factor);
  Tensor du = torch::stable::new_empty(u, {u.size(0), u.size(1)});
  a.output = du.mutable_data_ptr();
  if (u.numel()) run(current()->swiglu_backward[low(u, "activation: u")], a.rows, 8, a);
  return du;
}

Tensor slope_backward(Tensor dy, Tensor slope, Tensor own, std::optional<Tensor> factor) {
  const int kind = low(dy, "activation: dy");
  STD_TORCH_CHECK(slope.is_cpu() && slope.scalar_type() == ScalarType::Byte, "activation: slope must be uint8 on CPU");
  STD_TORCH_CHECK(dy.dim() == 2 && slope.dim() == 2 && own.dim() == 2 && low(own, "activation: own") == kind &&
                      slope.size(0) == dy.size(0) && own.size(0) == dy.size(0) &&
                      slope.size(1) + own.size(1) == dy.size(1),
                  "activation: slope and own must be [M, split] and [M, H - split] of dy [M, H], own of its dtype");
  STD_TORCH_CHECK(dy.is_contiguous() && slope.is_contiguous() && own.is_contiguous(),
                  "activation: dy, slope and own must be contiguous");
  check_factor(factor, dy.size(0));
  Tensor du = torch::stable::new_empty(dy, {dy.size(0), dy.size(1)});
  aim::Activation a{};
  a.rows = dy.size(0), a.width = dy.size(1), a.split = slope.size(1);
  a.factor = factor ? static_cast<const float*>(factor->const_data_ptr()) : nullptr;
  a.input = own.const_data_ptr(), a.grad = dy.const_data_ptr(), a.output = du.mutable_data_ptr();
  a.slope = static_cast<uint8_t*>(slope.mutable_data_ptr());
  if (dy.numel()) run(current()->slope_backward[kind], a.rows, 8, a);
  return du;
}

void check_affine(const Tensor& x, const Tensor& weight) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "layer_norm: x must be contiguous [M, D]");
  STD_TORCH_CHECK(!low(weight, "layer_norm: weight") && weight.is_contiguous() && weight.numel() == x.size(1),
                  "layer_norm: weight and bias must be contiguous float32 [D]");
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(Tensor x, Tensor weight, std::optional<Tensor> bias, double eps,
                                                      bool to_low) {
  const int kind = low(x, "layer_norm: x");
  check_affine(x, weight);
  if (bias) check_affine(x, *bias);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor y = torch::stable::new_empty(x, {rows, width}, to_low ? ScalarType::BFloat16 : ScalarType::Float);
  Tensor mean = torch::stable::new_empty(x, {bias ? rows : 0}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  aim::LayerNorm a{};
  a.rows = rows, a.width = width, a.eps = static_cast<float>(eps);
  a.input = x.const_data_ptr(), a.output = y.mutable_data_ptr();
  a.weight = static_cast<const float*>(weight.const_data_ptr());
  a.bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  a.mean = static_cast<float*>(mean.mutable_data_ptr()), a.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  if (x.numel()) run(current()->layer_norm_forward[kind][to_low], rows, 8, a);
  return {y, mean, rstd};
}

Tensor layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd,
                           std::optional<Tensor> residual) {
  const int kind = low(x, "layer_norm: x");
  check_affine(x, weight);
  const int64_t rows = x.size(0), width = x.size(1);
  STD_TORCH_CHECK(dy.is_contiguous() && dy.numel() == x.numel(), "layer_norm: dy must be contiguous [M, D]");
  STD_TORCH_CHECK(!low(mean, "mean") && !low(rstd, "rstd") && (mean.numel() == rows || !mean.numel()) && rstd.numel() == rows,
                  "layer_norm: mean and rstd must be float32 [M], of an RMS norm mean [0]");
  STD_TORCH_CHECK(!residual || (residual->is_contiguous() && residual->numel() == x.numel()),
                  "layer_norm: residual must be contiguous [M, D]");
  const int stream = residual ? low(*residual, "layer_norm: residual") : kind;
  Tensor dx = torch::stable::new_empty(x, {rows, width}, stream ? ScalarType::BFloat16 : ScalarType::Float);
  aim::LayerNorm a{};
  a.rows = rows, a.width = width;
  a.input = x.const_data_ptr(), a.output = dx.mutable_data_ptr(), a.grad = dy.const_data_ptr();
  a.weight = static_cast<const float*>(weight.const_data_ptr());
  a.mean = mean.numel() ? static_cast<float*>(mean.mutable_data_ptr()) : nullptr;
  a.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  a.residual = residual ? residual->const_data_ptr() : nullptr;
  if (x.numel()) run(current()->layer_norm_backward[kind][low(dy, "layer_norm: dy")][stream], rows, 8, a);
  return dx;
}

Tensor residual(Tensor x, Tensor branch, std::optional<Tensor> factor, std::optional<Tensor> bias) {
  const int kind = low(x, "residual: x");
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && branch.is_contiguous() && branch.numel() == x.numel(),
                  "residual: x and branch must be contiguous [M, D]");
  STD_TORCH_CHECK(!factor || (!low(*factor, "factor") && factor->is_contiguous() && factor->numel() == x.size(0)),
                  "residual: factor must be contiguous float32 [M]");
  STD_TORCH_CHECK(!bias || (!low(*bias, "bias") && bias->is_contiguous() && bias->numel() == x.size(1)),
                  "residual: bias must be contiguous float32 [D]");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  aim::Residual a{};
  a.rows = x.size(0), a.width = x.size(1);
  a.input = x.const_data_ptr(), a.branch = branch.const_data_ptr(), a.output = out.mutable_data_ptr();
  a.factor = factor ? static_cast<const float*>(factor->const_data_ptr()) : nullptr;
  a.bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  if (x.numel()) run(current()->residual[kind][low(branch, "residual: branch")], a.rows, 8, a);
  return out;
}

Tensor rotation(Tensor qkv, Tensor table, int64_t heads, bool interleaved, bool inverse) {
  const int kind = low(qkv, "rotation: qkv");
  STD_TORCH_CHECK(qkv.dim() == 4 && qkv.is_contiguous() && heads > 0 && qkv.size(3) % (6 * heads) == 0,
                  "rotation: qkv must be contiguous [B, T, N, 3D] in heads of even width");
  aim::Rotation a{};
  a.tokens = qkv.size(2), a.heads = heads, a.dim = qkv.size(3) / 3 / heads, a.rows = qkv.size(0) * qkv.size(1) * a.tokens;
  const int64_t axes = table.dim(), positions = axes < 2 ? 0 : table.size(axes - 2);
  STD_TORCH_CHECK(!low(table, "rotation: table") && table.is_contiguous() && (axes == 2 || (axes == 3 && table.size(0) == heads)) &&
                      table.size(axes - 1) == a.dim && positions <= a.tokens,
                  "rotation: table must be contiguous float32 [P, d] or [h, P, d]");
  Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), a.tokens, qkv.size(3)});
  a.prefix = a.tokens - positions, a.table_head = axes == 3 ? positions * a.dim : 0;
  a.sign = inverse ? -1.0f : 1.0f, a.interleaved = interleaved;
  a.table = static_cast<const float*>(table.const_data_ptr());
  a.input = qkv.const_data_ptr(), a.output = out.mutable_data_ptr();
  if (qkv.numel()) run(current()->rotation[kind], a.rows, 8, a);
  return out;
}

Tensor column_sum(Tensor x) {
  const int kind = low(x, "column_sum: x");
  STD_TORCH_CHECK(x.dim() == 2 && (x.stride(1) == 1 || x.size(1) == 1), "column_sum: rows of x must be contiguous");
  Tensor out = torch::stable::new_empty(x, {x.size(1)}, ScalarType::Float);
  aim::ColumnSum a{};
  a.rows = x.size(0), a.width = x.size(1), a.stride = x.stride(0);
  a.input = x.const_data_ptr(), a.output = static_cast<float*>(out.mutable_data_ptr());
  run(current()->column_sum[kind], (a.width + aim::kColumnsPerTask - 1) / aim::kColumnsPerTask, 1, a);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(aim_cpu, m) {
  m.def("attention_forward(Tensor qkv, Tensor? bias=None) -> (Tensor, Tensor)");
  m.def("attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor? bias=None) -> Tensor");
  m.def("activation_forward(Tensor u, int split, str act, Tensor? factor) -> Tensor");
  m.def("activation_backward(Tensor dy, Tensor u, int split, str act, Tensor? factor) -> Tensor");
  m.def("activation_slope(Tensor u, int split, str act, Tensor? factor) -> (Tensor, Tensor)");
  m.def("slope_backward(Tensor dy, Tensor slope, Tensor own, Tensor? factor) -> Tensor");
  m.def("swiglu_forward(Tensor u, int split, Tensor? factor) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor u, int split, Tensor? factor) -> Tensor");
  m.def("layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps, bool low) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? residual) -> Tensor");
  m.def("residual(Tensor x, Tensor branch, Tensor? factor, Tensor? bias) -> Tensor");
  m.def("rotation(Tensor qkv, Tensor table, int heads, bool interleaved, bool inverse) -> Tensor");
  m.def("column_sum(Tensor x) -> Tensor");
  m.def("tier() -> str");
  m.def("set_tier(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(aim_cpu, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("activation_forward", TORCH_BOX(&activation_forward));
  m.impl("activation_backward", TORCH_BOX(&activation_backward));
  m.impl("activation_slope", TORCH_BOX(&activation_slope));
  m.impl("slope_backward", TORCH_BOX(&slope_backward));
  m.impl("swiglu_forward", TORCH_BOX(&swiglu_forward));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("residual", TORCH_BOX(&residual));
  m.impl("rotation", TORCH_BOX(&rotation));
  m.impl("column_sum", TORCH_BOX(&column_sum));
}

STABLE_TORCH_LIBRARY_IMPL(aim_cpu, CompositeExplicitAutograd, m) {
  m.impl("tier", TORCH_BOX(&tier));
  m.impl("set_tier", TORCH_BOX(&set_tier));
}
