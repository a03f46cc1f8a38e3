// AVX-512 with AMX tiles: 16 x 16 x 32 bfloat16 products in one instruction.
#include "kernels.h"

#if defined(AIM_AMX_TIER)
#include <immintrin.h>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define AIM_AVX512 1
#define AIM_BF16 1
#define AIM_AMX 1

namespace aim {
namespace amx {
#include "tier.h"
}
extern const Tier tier_amx = amx::make_tier("amx");
}  // namespace aim
#endif
