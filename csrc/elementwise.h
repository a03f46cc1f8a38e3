// Activations of the widened MLP, plain and gated, layer norm with frozen affine, the residual add, rotation and bias
// gradients.  Included per tier, after vector.h.
//
// GELU: x Phi(x), Phi by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7), whose exponential also gives the density
// that the derivative Phi(x) + x phi(x) needs.  The others are x s(k(x)) with s the sigmoid, derivative
// s + x k'(x) s (1 - s): SiLU k = x, QuickGELU k = 1.702 x, GELU by tanh k = sqrt(8 / pi) (x + 0.044715 x^3).

template <int degree>
AIM_INLINE v16 sigmoid(v16 k) {
  return 1.0f / (exp2<degree>(k * -1.44269504f) + 1.0f);
}

template <int degree>
AIM_INLINE void gelu(v16 x, v16& cumulative, v16& density) {
  v16 z = (v16)((i16v)x & 0x7fffffff);
  v16 t = 1.0f / (z * (0.3275911f * 0.70710678f) + 1.0f);
  v16 e = exp2<degree>(x * x * (-0.5f * 1.44269504f));
  v16 poly = t * 1.061405429f - 1.453152027f;
  poly = poly * t + 1.421413741f;
  poly = poly * t - 0.284496736f;
  poly = poly * t + 0.254829592f;
  v16 tail = poly * t * e * 0.5f;
  cumulative = select(negative(x + 0.0f), tail, 1.0f - tail);
  density = e * 0.39894228f;
}

// The value at x, and the slope; what is not used of the two is not computed.
template <Nonlinearity act, int degree>
AIM_INLINE v16 activate(v16 x, v16& slope) {
  if constexpr (act == Nonlinearity::quick_gelu) {
    v16 s = 1.0f / (exp2<degree>(x * (-1.702f * 1.44269504f)) + 1.0f);
    slope = s + x * 1.702f * s * (1.0f - s);
    return x * s;
  } else if constexpr (act == Nonlinearity::gelu_tanh) {
    v16 cube = x * x * 0.0713548163f;  // sqrt(8 / pi) 0.044715 x^2
    v16 s = sigmoid<degree>(x * (cube + 1.59576912f));
    slope = s + x * (cube * 3.0f + 1.59576912f) * s * (1.0f - s);
    return x * s;
  } else {
    v16 cumulative, density;
    gelu<degree>(x, cumulative, density);
    slope = cumulative + x * density;
    return x * cumulative;
  }
}

template <Nonlinearity act, bool backward, class T>
static void activate_row(const T* u, const T* dy, T* y, float factor, int64_t count) {
  constexpr int degree = sizeof(T) == 2 ? 3 : 5;
  v16 slope;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    v16 value = activate<act, degree>(load(u + i), slope);
    store(y + i, backward ? slope * factor * load(dy + i) : value * factor);
  }
  if (i < count) {
    v16 value = activate<act, degree>(load_part(u + i, count - i), slope);
    store_part(y + i, backward ? slope * factor * load_part(dy + i, count - i) : value * factor, count - i);
  }
}

template <bool backward, class T>
static void activation(int64_t begin, int64_t end, const void* problem) {
  const Activation& a = *static_cast<const Activation*>(problem);
  for (int64_t row = begin; row < end; ++row) {
    const T* u = static_cast<const T*>(a.input) + row * a.width;
    const T* dy = backward ? static_cast<const T*>(a.grad) + row * a.width : u;
    T* y = static_cast<T*>(a.output) + row * a.width;
    if (a.act == Nonlinearity::quick_gelu)
      activate_row<Nonlinearity::quick_gelu, backward>(u, dy, y, 1.0f, a.split);
    else if (a.act == Nonlinearity::gelu_tanh)
      activate_row<Nonlinearity::gelu_tanh, backward>(u, dy, y, 1.0f, a.split);
    else
      activate_row<Nonlinearity::gelu, backward>(u, dy, y, 1.0f, a.split);
    activate_row<Nonlinearity::gelu, backward>(u + a.split, dy + a.split, y + a.split,
                                               a.factor ? a.factor[row] : 1.0f, a.width - a.split);
  }
}

// A slope of the frozen activation in one byte: 0 is code 27, 1 is 227, half a step is 0.0025, NaN is 255.
AIM_INLINE v16 slope_code(v16 slope) {
  v16 code = slope * 200.0f + 27.5f;  // truncated when stored
  return select(invalid(slope), splat(255.0f), code);
}
AIM_INLINE v16 slope_of(v16 code) {
  v16 slope = (code - 27.0f) * 0.005f;
  return select(negative(254.5f - code), splat(__builtin_nanf("")), slope);
}

template <Nonlinearity act, class T>
static void slope_row(const T* u, T* y, uint8_t* slopes, int64_t count) {
  constexpr int degree = sizeof(T) == 2 ? 3 : 5;
  v16 slope;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    store(y + i, activate<act, degree>(load(u + i), slope));
    store(slopes + i, slope_code(slope));
  }
  if (i < count) {
    store_part(y + i, activate<act, degree>(load_part(u + i, count - i), slope), count - i);
    store_part(slopes + i, slope_code(slope), count - i);
  }
}

template <class T>
static void activation_slope(int64_t begin, int64_t end, const void* problem) {
  const Activation& a = *static_cast<const Activation*>(problem);
  for (int64_t row = begin; row < end; ++row) {
    const T* u = static_cast<const T*>(a.input) + row * a.width;
    T* y = static_cast<T*>(a.output) + row * a.width;
    uint8_t* slopes = a.slope + row * a.split;
    if (a.act == Nonlinearity::quick_gelu)
      slope_row<Nonlinearity::quick_gelu>(u, y, slopes, a.split);
    else if (a.act == Nonlinearity::gelu_tanh)
      slope_row<Nonlinearity::gelu_tanh>(u, y, slopes, a.split);
    else
      slope_row<Nonlinearity::gelu>(u, y, slopes, a.split);
    activate_row<Nonlinearity::gelu, false>(u + a.split, u, y + a.split, a.factor ? a.factor[row] : 1.0f,
                                            a.width - a.split);
  }
}

template <class T>
static void slope_backward(int64_t begin, int64_t end, const void* problem) {
  const Activation& a = *static_cast<const Activation*>(problem);
  const int64_t own = a.width - a.split;
  for (int64_t row = begin; row < end; ++row) {
    const T* dy = static_cast<const T*>(a.grad) + row * a.width;
    T* du = static_cast<T*>(a.output) + row * a.width;
    const uint8_t* slopes = a.slope + row * a.split;
    int64_t i = 0;
    for (; i + 16 <= a.split; i += 16) store(du + i, load(dy + i) * slope_of(load(slopes + i)));
    if (i < a.split)
      store_part(du + i, load_part(dy + i, a.split - i) * slope_of(load_part(slopes + i, a.split - i)), a.split - i);
    activate_row<Nonlinearity::gelu, true>(static_cast<const T*>(a.input) + row * own, dy + a.split, du + a.split,
                                           a.factor ? a.factor[row] : 1.0f, own);
  }
}

// The gate's columns of u, then the values', then the adapter's; y and dy have the gated ones and the adapter's.
template <bool backward, class T>
static void swiglu(int64_t begin, int64_t end, const void* problem) {
  constexpr int degree = sizeof(T) == 2 ? 3 : 5;
  const Activation& a = *static_cast<const Activation*>(problem);
  const int64_t wide = a.width + a.split;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(a.input) + row * wide;
    const T* value = gate + a.split;
    const T* dy = backward ? static_cast<const T*>(a.grad) + row * a.width : value;
    T* out = static_cast<T*>(a.output) + row * (backward ? wide : a.width);
    T* own = out + (backward ? 2 * a.split : a.split);
    for (int64_t i = 0; i < a.split; i += 16) {
      const bool whole = i + 16 <= a.split;
      const int64_t count = a.split - i;
      v16 x = whole ? load(gate + i) : load_part(gate + i, count);
      v16 v = whole ? load(value + i) : load_part(value + i, count);
      v16 s = sigmoid<degree>(x), y = x * s * v, dvalue{};
      if constexpr (backward) {
        v16 g = whole ? load(dy + i) : load_part(dy + i, count);
        y = g * v * (s + x * s * (1.0f - s));
        dvalue = g * x * s;
      }
      if (whole) {
        store(out + i, y);
        if constexpr (backward) store(out + a.split + i, dvalue);
      } else {
        store_part(out + i, y, count);
        if constexpr (backward) store_part(out + a.split + i, dvalue, count);
      }
    }
    activate_row<Nonlinearity::gelu, backward>(value + a.split, dy + a.split, own, a.factor ? a.factor[row] : 1.0f,
                                               a.width - a.split);
  }
}

template <class X, class Y>
static void layer_norm_forward(int64_t begin, int64_t end, const void* problem) {
  const LayerNorm& a = *static_cast<const LayerNorm*>(problem);
  const int64_t whole = a.width / 16 * 16, part = a.width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(a.input) + row * a.width;
    Y* y = static_cast<Y*>(a.output) + row * a.width;
    float mean = 0.0f;
    if (a.bias) {
      v16 total{};
      for (int64_t i = 0; i < whole; i += 16) total += load(x + i);
      mean = sum(total);
      for (int64_t i = whole; i < a.width; ++i) mean += widen_one(x[i]);
      mean /= a.width;
    }
    v16 squares{};
    for (int64_t i = 0; i < whole; i += 16) {
      v16 centred = load(x + i) - mean;
      squares += centred * centred;
    }
    float variance = sum(squares);
    for (int64_t i = whole; i < a.width; ++i) variance += (widen_one(x[i]) - mean) * (widen_one(x[i]) - mean);
    const float rstd = 1.0f / __builtin_sqrtf(variance / a.width + a.eps);
    a.rstd[row] = rstd;
    if (!a.bias) {
      for (int64_t i = 0; i < whole; i += 16) store(y + i, load(x + i) * rstd * load(a.weight + i));
      if (part) store_part(y + whole, load_part(x + whole, part) * rstd * load_part(a.weight + whole, part), part);
      continue;
    }
    for (int64_t i = 0; i < whole; i += 16)
      store(y + i, (load(x + i) - mean) * rstd * load(a.weight + i) + load(a.bias + i));
    if (part)
      store_part(y + whole,
                 (load_part(x + whole, part) - mean) * rstd * load_part(a.weight + whole, part) +
                     load_part(a.bias + whole, part),
                 part);
    a.mean[row] = mean;
  }
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)) + residual, with g = dy * weight; of an RMS norm without mean(g).
template <class X, class Y, class R>
static void layer_norm_backward(int64_t begin, int64_t end, const void* problem) {
  const LayerNorm& a = *static_cast<const LayerNorm*>(problem);
  const int64_t whole = a.width / 16 * 16, part = a.width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(a.input) + row * a.width;
    const Y* dy = static_cast<const Y*>(a.grad) + row * a.width;
    const R* residual = a.residual ? static_cast<const R*>(a.residual) + row * a.width : nullptr;
    R* dx = static_cast<R*>(a.output) + row * a.width;
    const float mean = a.mean ? a.mean[row] : 0.0f, rstd = a.rstd[row];
    v16 sum_g{}, sum_gx{};
    for (int64_t i = 0; i < whole; i += 16) {
      v16 g = load(dy + i) * load(a.weight + i);
      sum_g += g;
      sum_gx += g * ((load(x + i) - mean) * rstd);
    }
    if (part) {
      v16 g = load_part(dy + whole, part) * load_part(a.weight + whole, part);
      sum_g += g;
      sum_gx += g * ((load_part(x + whole, part) - mean) * rstd);
    }
    const float mean_g = a.mean ? sum(sum_g) / a.width : 0.0f, mean_gx = sum(sum_gx) / a.width;
    for (int64_t i = 0; i < whole; i += 16) {
      v16 g = load(dy + i) * load(a.weight + i);
      v16 value = (g - mean_g - (load(x + i) - mean) * rstd * mean_gx) * rstd;
      if (residual) value += load(residual + i);
      store(dx + i, value);
    }
    if (part) {
      v16 g = load_part(dy + whole, part) * load_part(a.weight + whole, part);
      v16 value = (g - mean_g - (load_part(x + whole, part) - mean) * rstd * mean_gx) * rstd;
      if (residual) value += load_part(residual + whole, part);
      store_part(dx + whole, value, part);
    }
  }
}

template <class X, class Y>
static void residual(int64_t begin, int64_t end, const void* problem) {
  const Residual& a = *static_cast<const Residual*>(problem);
  const int64_t whole = a.width / 16 * 16, part = a.width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const X* x = static_cast<const X*>(a.input) + row * a.width;
    const Y* branch = static_cast<const Y*>(a.branch) + row * a.width;
    X* out = static_cast<X*>(a.output) + row * a.width;
    const float factor = a.factor ? a.factor[row] : 1.0f;
    if (a.bias) {
      for (int64_t i = 0; i < whole; i += 16)
        store(out + i, load(x + i) + load(branch + i) + load(a.bias + i) * factor);
      if (part)
        store_part(out + whole,
                   load_part(x + whole, part) + load_part(branch + whole, part) + load_part(a.bias + whole, part) * factor,
                   part);
    } else {
      for (int64_t i = 0; i < whole; i += 16) store(out + i, load(x + i) + load(branch + i) * factor);
      if (part)
        store_part(out + whole, load_part(x + whole, part) + load_part(branch + whole, part) * factor, part);
    }
  }
}

// Two channels of sixteen pairs each: what turning does to them.
AIM_INLINE void turn(v16& first, v16& second, v16 sine, v16 cosine) {
  v16 turned = first * cosine - second * sine;
  second = second * cosine + first * sine;
  first = turned;
}

template <class T>
static void turn_head(const T* x, const float* table, float sign, bool interleaved, T* y, int64_t dim) {
  const int64_t half = dim / 2;
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    v16 sine = load(table + i) * sign, cosine = load(table + half + i);
    if (interleaved) {
      v16 a = load(x + 2 * i), b = load(x + 2 * i + 16);
      v16 first = (v16)AIM_SHUFFLE((u16v)a, (u16v)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      v16 second = (v16)AIM_SHUFFLE((u16v)a, (u16v)b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
      turn(first, second, sine, cosine);
      store(y + 2 * i, (v16)AIM_SHUFFLE((u16v)first, (u16v)second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
      store(y + 2 * i + 16,
            (v16)AIM_SHUFFLE((u16v)first, (u16v)second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
    } else {
      v16 first = load(x + i), second = load(x + half + i);
      turn(first, second, sine, cosine);
      store(y + i, first);
      store(y + half + i, second);
    }
  }
  for (; i < half; ++i) {
    const int64_t one = interleaved ? 2 * i : i, other = interleaved ? one + 1 : half + i;
    const float first = widen_one(x[one]), second = widen_one(x[other]), sine = table[i] * sign, cosine = table[half + i];
    store_one(y + one, first * cosine - second * sine);
    store_one(y + other, second * cosine + first * sine);
  }
}

template <class T>
static void rotation(int64_t begin, int64_t end, const void* problem) {
  const Rotation& a = *static_cast<const Rotation*>(problem);
  const int64_t width = a.heads * a.dim;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.input) + row * 3 * width;
    T* y = static_cast<T*>(a.output) + row * 3 * width;
    const int64_t position = row % a.tokens - a.prefix;
    if (position < 0) {
      __builtin_memcpy(y, x, 3 * width * sizeof(T));
      continue;
    }
    for (int64_t part = 0; part < 2 * a.heads; ++part)
      turn_head(x + part * a.dim, a.table + part % a.heads * a.table_head + position * a.dim, a.sign, a.interleaved,
                y + part * a.dim, a.dim);
    __builtin_memcpy(y + 2 * width, x + 2 * width, width * sizeof(T));
  }
}

template <class T>
static void column_sum(int64_t begin, int64_t end, const void* problem) {
  const ColumnSum& a = *static_cast<const ColumnSum*>(problem);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task * kColumnsPerTask;
    const int64_t last = first + kColumnsPerTask < a.width ? first + kColumnsPerTask : a.width;
    const T* x = static_cast<const T*>(a.input) + first;
    v16 total[4]{};
    float rest[16] = {};
    const int64_t vectors = (last - first) / 16, tail = (last - first) % 16;
    for (int64_t r0 = 0; r0 < a.rows; r0 += 64) {
      v16 block[4]{};
      float block_rest[16] = {};
      const int64_t r1 = r0 + 64 < a.rows ? r0 + 64 : a.rows;
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t v = 0; v < vectors; ++v) block[v] += load(x + r * a.stride + 16 * v);
        for (int64_t i = 0; i < tail; ++i) block_rest[i] += widen_one(x[r * a.stride + 16 * vectors + i]);
      }
      for (int v = 0; v < 4; ++v) total[v] += block[v];
      for (int i = 0; i < 16; ++i) rest[i] += block_rest[i];
    }
    for (int64_t v = 0; v < vectors; ++v) store(a.output + first + 16 * v, total[v]);
    for (int64_t i = 0; i < tail; ++i) a.output[first + 16 * vectors + i] = rest[i];
  }
}
