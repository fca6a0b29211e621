#include "cpu/fourier_plan.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <tuple>

namespace bandjax {
namespace {

// Of each radix that the kernels have, nanoseconds for each point of a first pass, which has no
// factors, and of a later one (measured with vectors of 8 floats; wider ones cost more, but so does
// everything that they are compared with).
struct RadixCost {
  int radix;
  double first, later;
};
constexpr RadixCost kRadices[] = {{2, 0.8, 1.2},  {3, 0.95, 1.45}, {4, 0.8, 1.3},  {5, 1.2, 1.8},
                                  {6, 1.1, 2.0},  {7, 2.3, 3.0},   {8, 1.35, 2.0}, {9, 1.7, 2.7},
                                  {10, 1.5, 3.2}, {11, 3.6, 5.2},  {12, 1.6, 3.0}, {13, 3.5, 5.2},
                                  {15, 1.7, 3.1}, {16, 1.9, 3.3}};
constexpr double kMultiply = 0.25;  // one multiply-add of a table with a vector
constexpr double kMove = 1.5;       // to bring a point to its place, or from it
constexpr double kGain = 0.85;      // the share of a table's cost from which on the rule leaves it

using Known = std::map<int64_t, std::pair<double, int>>;

// The cheapest product of later radices, and its cost for each point; infinite where there is none.
double LaterCost(int64_t length, Known* known) {
  if (length == 1) return 0;
  const auto found = known->find(length);
  if (found != known->end()) return found->second.first;
  std::pair<double, int> best{INFINITY, 0};
  for (const RadixCost& one : kRadices) {
    if (length % one.radix != 0) continue;
    const double cost = one.later + LaterCost(length / one.radix, known);
    if (cost < best.first) best = {cost, one.radix};
  }
  (*known)[length] = best;
  return best.first;
}

// The same of all passes.
double Cheapest(int64_t length, Known* known, int* first) {
  double best = INFINITY;
  for (const RadixCost& one : kRadices) {
    if (length % one.radix != 0) continue;
    const double cost = one.first + LaterCost(length / one.radix, known);
    if (cost < best) best = cost, *first = one.radix;
  }
  return best;
}

int64_t Length(const AxisShape& shape) { return shape.grid / std::gcd(shape.grid, shape.step); }
int64_t Kept(const AxisShape& shape) {
  return shape.half ? shape.limit + 1 : std::min(2 * shape.limit + 1, shape.grid);
}

// Whether a real line goes as a complex one of half the length.
bool Halved(const AxisShape& shape, bool fast, bool alone) {
  return fast && alone && Length(shape) % 2 == 0 && Length(shape) > 2;
}

// A plan and the memory that it points into.
struct OwnedPlan : FourierPlan {
  std::vector<int32_t> load, read, nothing, passes_of;
  std::vector<float> twiddles_single, factors_single, turns_single;
  std::vector<double> twiddles_double, factors_double, turns_double;

  void Point() {
    load_at = load.data(), read_at = read.data();
    empty = nothing.data(), empties = static_cast<int64_t>(nothing.size());
    radices = passes_of.data(), passes = static_cast<int64_t>(passes_of.size());
    twiddles_single.assign(twiddles_double.begin(), twiddles_double.end());
    factors_single.assign(factors_double.begin(), factors_double.end());
    turns_single.assign(turns_double.begin(), turns_double.end());
    twiddles32 = twiddles_single.data(), factors32 = factors_single.data();
    twiddles64 = twiddles_double.data(), factors64 = factors_double.data();
    turns32 = turns_single.data(), turns64 = turns_double.data();
  }
};

// Where the passes, which begin with neighbours, want the number of each slot.
std::vector<int32_t> Places(int64_t length, const std::vector<int32_t>& radices) {
  std::vector<int32_t> places(length);
  for (int64_t slot = 0; slot < length; ++slot) {
    int64_t rest = slot, size = length, place = 0;
    for (auto radix = radices.rbegin(); radix != radices.rend(); ++radix) {
      size /= *radix;
      place += rest % *radix * size;
      rest /= *radix;
    }
    places[slot] = static_cast<int32_t>(place);
  }
  return places;
}

// exp(-2 pi i q k / (m r)) of each pass but the first: cosine and minus its imaginary part, for k
// in [0, m) and q in [1, r).
std::vector<double> Twiddles(const std::vector<int32_t>& radices) {
  std::vector<double> twiddles;
  int64_t done = 1;
  for (const int64_t radix : radices) {
    for (int64_t k = 0; done > 1 && k < done; ++k) {
      for (int64_t q = 1; q < radix; ++q) {
        const double angle = 2 * M_PI * static_cast<double>(q * k) / (done * radix);
        twiddles.push_back(std::cos(angle));
        twiddles.push_back(std::sin(angle));
      }
    }
    done *= radix;
  }
  return twiddles;
}

// Weight and phase of each frequency.
std::vector<double> Factors(const AxisShape& shape, bool fast, bool analysis) {
  std::vector<double> factors;
  for (int64_t u = 0; u <= shape.limit; ++u) {
    // Two lines are transformed as one complex line, and each has half of it.
    double weight = shape.half && (analysis || u > 0) ? 0.5 : 1, angle = 0;
    if (fast) {
      if (shape.inverse) {
        weight *= shape.half && u > 0 && 2 * u != shape.grid ? 2.0 : 1.0;
        weight /= static_cast<double>(shape.grid);
      }
      const int64_t halves = shape.step * (shape.samples - 1) % (2 * shape.grid) * u;
      angle = M_PI * static_cast<double>(halves % (2 * shape.grid)) / shape.grid;
    }
    factors.push_back(weight * std::cos(angle));
    factors.push_back(weight * std::sin(analysis ? angle : -angle));
  }
  return factors;
}

// Sets the places of samples and frequencies, given the slot of each and the place of each slot.
void SetPlaces(const AxisShape& shape, bool analysis, const std::vector<int32_t>& samples,
               const std::vector<int32_t>& frequencies, const std::vector<int32_t>& places,
               OwnedPlan* plan) {
  plan->read = analysis ? frequencies : samples;
  plan->load = analysis ? samples : frequencies;
  if (!plan->fast && analysis) return;  // The line of samples has no slots.
  const int64_t limit = shape.limit;
  // In the kernels' order: of half the frequencies u and -u together, of all of them -u behind.
  std::vector<size_t> order;
  if (analysis) {
    for (size_t i = 0; i < samples.size(); ++i) order.push_back(i);
  } else {
    const bool nyquist_once = !shape.half && 2 * limit == shape.grid;
    for (int64_t u = 0; u <= limit; ++u) {
      order.push_back(2 * u);
      if (shape.half && u > 0) order.push_back(2 * u + 1);
    }
    for (int64_t u = limit - nyquist_once; !shape.half && u > 0; --u) order.push_back(2 * u + 1);
  }
  const int32_t parts = plan->halved && analysis ? 2 : 1;
  std::vector<bool> reached(parts * places.size());
  for (int32_t& slot : plan->load) slot = parts * places[slot / parts] + slot % parts;
  for (const size_t i : order) {
    const int32_t place = plan->load[i];
    if (reached[place]) plan->load[i] = ~place;
    reached[place] = true;
  }
  for (size_t place = 0; place < reached.size(); ++place) {
    if (!reached[place]) plan->nothing.push_back(static_cast<int32_t>(place));
  }
}

std::unique_ptr<OwnedPlan> Make(const AxisShape& shape, bool fast, bool analysis, bool alone) {
  auto plan = std::make_unique<OwnedPlan>();
  const int64_t n = shape.samples, limit = shape.limit;
  const int64_t circle = fast ? Length(shape) : 2 * limit + 1;
  plan->samples = n, plan->limit = limit, plan->fast = fast;
  plan->halved = Halved(shape, fast, alone);
  const int64_t length = plan->halved ? circle / 2 : circle;
  plan->length = length;
  plan->room = fast ? length : std::max(n, length);

  std::vector<int32_t> places(length);
  std::iota(places.begin(), places.end(), 0);
  if (fast) {
    for (int radix : Radices(length)) plan->passes_of.push_back(radix);
    places = Places(length, plan->passes_of);
    plan->twiddles_double = Twiddles(plan->passes_of);
  }
  plan->factors_double = Factors(shape, fast, analysis);

  std::vector<int32_t> samples, frequencies;  // their slots
  for (int64_t j = 0; j < n; ++j) {
    const int64_t slot = fast ? shape.step * circle / shape.grid % circle * j % circle : j;
    samples.push_back(static_cast<int32_t>(slot));
  }
  for (int64_t u = 0; u <= limit; ++u) {
    frequencies.push_back(static_cast<int32_t>(u % length));
    frequencies.push_back(static_cast<int32_t>((length - u % length) % length));
    const double angle = 2 * M_PI * static_cast<double>(u) / static_cast<double>(circle);
    plan->turns_double.push_back(std::cos(angle));
    plan->turns_double.push_back(std::sin(angle));
  }
  SetPlaces(shape, analysis, samples, frequencies, places, plan.get());
  plan->Point();
  return plan;
}

// Nanoseconds of one complex line.
double FastCost(const AxisShape& shape) {
  if (shape.grid < 1 || shape.limit == 0) return INFINITY;
  Known known;
  int first = 0;
  return static_cast<double>(Length(shape)) * Cheapest(Length(shape), &known, &first);
}
double TableCost(const AxisShape& shape) {
  if (shape.bare) return INFINITY;
  return kMultiply * static_cast<double>((2 * shape.limit + 1) * shape.samples);
}

}  // namespace

std::vector<int> Radices(int64_t length) {
  Known known;
  std::vector<int> radices;
  int first = 0;
  if (length < 2 || std::isinf(Cheapest(length, &known, &first))) return radices;
  radices.push_back(first);
  for (length /= first; length > 1; length /= radices.back()) {
    LaterCost(length, &known);
    radices.push_back(known[length].second);
  }
  return radices;
}

const FourierPlan* PlanOf(const AxisShape& shape, bool fast, bool analysis, bool alone) {
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, bool, bool, bool, bool>;
  static std::mutex mutex;
  static auto* plans = new std::map<Key, std::unique_ptr<OwnedPlan>>;  // to the program's end
  const Key key{shape.grid,    shape.step, shape.samples, shape.limit, shape.half,
                shape.inverse, fast,       analysis,      alone};
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<OwnedPlan>& plan = (*plans)[key];
  if (plan == nullptr) plan = Make(shape, fast, analysis, alone);
  return plan.get();
}

bool ChooseFourier(const AxisShape* axes, int rank, bool* fast) {
  // A table's own kernel goes over all axes at once, and two lines are one complex line here. Both
  // work on the last axis first: it is done when the frequencies of the others are not yet there.
  double fourier = 0, table = 0, lines = 1;
  for (int axis = 0; axis < rank; ++axis) lines *= static_cast<double>(axes[axis].samples);
  bool any = false;
  for (int axis = rank - 1; axis >= 0; --axis) {
    const AxisShape& shape = axes[axis];
    lines /= static_cast<double>(shape.samples);
    // An odd line alone has no other for its imaginary part.
    const bool single = lines == 1 && !Halved(shape, true, true);
    const double count = axis == rank - 1 && !single ? lines / 2 : lines, slow = TableCost(shape);
    fast[axis] = FastCost(shape) < slow;
    any = any || fast[axis];
    fourier += count * (std::min(FastCost(shape), slow) +
                        kMove * static_cast<double>(shape.samples + Kept(shape)));
    table += count * slow;
    lines *= static_cast<double>(Kept(shape));
  }
  return rank == 3 || (any && fourier < kGain * table);
}

}  // namespace bandjax
