// Any processor: the compiler's lowering of 16-wide vectors to what the architecture's baseline has (SSE2, NEON).
#include "kernels.h"

namespace aim {
namespace generic {
#include "tier.h"
}
extern const Tier tier_generic = generic::make_tier("generic");
}  // namespace aim
