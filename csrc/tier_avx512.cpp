// AVX-512 without bfloat16 instructions: products in fp32.
#include "kernels.h"

#if defined(AIM_X86_TIERS)
#include <immintrin.h>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define AIM_AVX512 1

namespace aim {
namespace avx512 {
#include "tier.h"
}
extern const Tier tier_avx512 = avx512::make_tier("avx512");
}  // namespace aim
#endif
