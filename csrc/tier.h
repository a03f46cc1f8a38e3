// The body of every tier_*.cpp: the templates, compiled for that tier, and its table of entry points.
// The including file has set the target, opened namespace aim and a tier's own namespace, and defined the AIM_ macros.

#include "vector.h"

#include "product.h"

#include "attention.h"

#include "elementwise.h"

#if AIM_BF16
using Low = bf16;
#else
using Low = float;
#endif

static constexpr Tier make_tier(const char* name) {
  return Tier{
      name,
      {attention_forward<float, float>, attention_forward<bf16, Low>},
      {attention_backward<float, float>, attention_backward<bf16, Low>},
      {activation<false, float>, activation<false, bf16>},
      {activation<true, float>, activation<true, bf16>},
      {activation_slope<float>, activation_slope<bf16>},
      {slope_backward<float>, slope_backward<bf16>},
      {swiglu<false, float>, swiglu<false, bf16>},
      {swiglu<true, float>, swiglu<true, bf16>},
      {{layer_norm_forward<float, float>, layer_norm_forward<float, bf16>},
       {layer_norm_forward<bf16, float>, layer_norm_forward<bf16, bf16>}},
      {{{layer_norm_backward<float, float, float>, layer_norm_backward<float, float, bf16>},
        {layer_norm_backward<float, bf16, float>, layer_norm_backward<float, bf16, bf16>}},
       {{layer_norm_backward<bf16, float, float>, layer_norm_backward<bf16, float, bf16>},
        {layer_norm_backward<bf16, bf16, float>, layer_norm_backward<bf16, bf16, bf16>}}},
      {{residual<float, float>, residual<float, bf16>}, {residual<bf16, float>, residual<bf16, bf16>}},
      {rotation<float>, rotation<bf16>},
      {column_sum<float>, column_sum<bf16>},
  };
}
