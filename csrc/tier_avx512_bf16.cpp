// AVX-512 with VDPBF16PS: bfloat16 products, two at a time into fp32.
#include "kernels.h"

#if defined(AIM_X86_TIERS)
#include <immintrin.h>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define AIM_AVX512 1
#define AIM_BF16 1

namespace aim {
namespace avx512_bf16 {
#include "tier.h"
}
extern const Tier tier_avx512_bf16 = avx512_bf16::make_tier("avx512_bf16");
}  // namespace aim
#endif
