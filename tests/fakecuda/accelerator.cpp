// Loaded before libtorch, in whose place it answers which accelerator there is: a build for CPUs knows of none.
#include <cstdint>
#include <optional>

namespace c10 {
enum class DeviceType : int8_t { CUDA = 1 };
}

namespace at::accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) {
  return c10::DeviceType::CUDA;
}
}  // namespace at::accelerator
