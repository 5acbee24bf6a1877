// Portable vectors of 64 bytes, and the functions of them that edges and neurons need.

#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace {

template <class R> struct Types;
template <> struct Types<float> {
  typedef float vec __attribute__((vector_size(64)));
  typedef int whole __attribute__((vector_size(64)));
  static constexpr float magic = 12582912.f, log2e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, limit = 87.f;
  static constexpr int degree = 7, bias = 127, shift = 23;
};
template <> struct Types<double> {
  typedef double vec __attribute__((vector_size(64)));
  typedef long long whole __attribute__((vector_size(64)));
  static constexpr double magic = 6755399441055744., log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double limit = 700.;
  static constexpr int degree = 13, bias = 1023, shift = 52;
};

template <class R> using Vec = typename Types<R>::vec;
template <class R> constexpr int LANES = 64 / sizeof(R);

template <class R> inline Vec<R> load(const R* p) {
  Vec<R> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class R> inline void store(R* p, Vec<R> v) { std::memcpy(p, &v, sizeof v); }
template <class R> inline Vec<R> splat(R x) { return x - Vec<R>{}; }
template <class R> inline Vec<R> least(Vec<R> a, Vec<R> b) { return a < b ? a : b; }
template <class R> inline Vec<R> largest(Vec<R> a, Vec<R> b) { return a > b ? a : b; }

// e^x: x = n ln 2 + r, a Taylor polynomial of r, and n put into the exponent.
template <class R> inline Vec<R> exponential(Vec<R> x) {
  using T = Types<R>;
  x = least<R>(largest<R>(x, splat<R>(-T::limit)), splat<R>(T::limit));
  Vec<R> shifted = x * T::log2e + T::magic;  // rounds to a whole number in the low bits
  Vec<R> n = shifted - T::magic;
  Vec<R> r = x - n * T::ln2_high - n * T::ln2_low;
  Vec<R> sum = splat<R>(1);
  for (int k = T::degree; k > 0; --k) sum = sum * (r * (R(1) / R(k))) + R(1);
  auto whole = (typename T::whole)shifted - (typename T::whole)splat<R>(T::magic);
  return sum * (Vec<R>)((whole + T::bias) << T::shift);
}

template <class R> inline Vec<R> sigmoid(Vec<R> x) { return R(1) / (R(1) + exponential<R>(-x)); }

}  // namespace
