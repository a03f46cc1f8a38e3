// x86-64 with AVX2 and FMA: products in fp32, whatever the tensors hold.
#include "kernels.h"

#if defined(AIM_X86_TIERS)
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define AIM_AVX2 1

namespace aim {
namespace avx2 {
#include "tier.h"
}
extern const Tier tier_avx2 = avx2::make_tier("avx2");
}  // namespace aim
#endif
