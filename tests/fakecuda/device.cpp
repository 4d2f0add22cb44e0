// A device "cuda:0" whose memory is the machine's own, for a torch that is built for CPUs.
//
// Every operation on it is done by the CPU's kernel on the same bytes, and refuses what CUDA's would refuse: tensors of
// two devices in one operation, and a generator of the CPU for numbers on the device.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <mutex>
#include <set>

namespace {

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return DEVICE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
};

// Page-locked memory: ordinary memory that is remembered as such.
struct Pinned final : at::HostAllocator {
  static inline std::mutex lock;
  static inline std::set<std::pair<const char*, const char*>> ranges;
  static void release(void* data) {
    std::lock_guard<std::mutex> held(lock);
    for (auto range = ranges.begin(); range != ranges.end(); ++range)
      if (range->first == data) {
        ranges.erase(range);
        break;
      }
    std::free(data);
  }
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> held(lock);
    for (const auto& range : ranges)
      if (range.first <= data && data < range.second) return true;
    return false;
  }
  at::DataPtr allocate(size_t size) override {
    auto data = static_cast<char*>(std::malloc(size + 1));
    std::lock_guard<std::mutex> held(lock);
    ranges.insert({data, data + size + 1});
    return {data, data, &release, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
Pinned pinned;

// CUDA's numbers are not the CPU's, but that they are drawn on the device is all that is looked at here.
struct Numbers final : at::CPUGeneratorImpl {
  Numbers() { device_ = DEVICE; }
};

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto options = tensor.options().device(c10::DeviceType::CPU);
  auto held = [tensor](void*) {};
  auto host = at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), held, options);
  host._set_conj(tensor.is_conj());
  host._set_neg(tensor.is_neg());
  return host;
}

at::Tensor on_device(const at::Tensor& host) {
  if (!host.defined() || !host.is_cpu()) return host;
  auto bytes = at::detail::computeStorageNbytes(host.sizes(), host.strides(), host.itemsize());
  auto release = [](void* held) { delete static_cast<at::Tensor*>(held); };
  c10::DataPtr data(host.mutable_data_ptr(), new at::Tensor(host), release, DEVICE);
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), bytes, std::move(data), nullptr, false);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), host.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides());
  made._set_conj(host.is_conj());
  made._set_neg(host.is_neg());
  return made;
}

// What an operation was given, with the device's memory as the CPU's.
struct Given {
  bool device = false;    // something of the device is among it
  bool elsewhere = false; // and a tensor of the CPU with dimensions
  bool drawn_on_host = false;
  at::Generator of_device{};
  at::Generator of_host{};

  at::Tensor tensor(const at::Tensor& t) {
    if (t.defined()) {
      device |= t.is_cuda();
      elsewhere |= t.is_cpu() && t.dim() > 0;
    }
    return on_host(t);
  }

  at::Generator generator(const at::Generator& g) {
    if (g.device().is_cpu()) {
      drawn_on_host = true;
      return g;
    }
    of_device = g;
    of_host = at::detail::createCPUGenerator();
    of_host.set_state(g.get_state());
    return of_host;
  }

  c10::IValue value(const c10::IValue& v) {
    if (v.isTensor()) return tensor(v.toTensor());
    if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : v.toTensorVector()) list.push_back(tensor(t));
      return list;
    }
    if (v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& t : v.toOptionalTensorVector())
        list.push_back(t ? std::optional<at::Tensor>(tensor(*t)) : t);
      return list;
    }
    if (v.isDevice() && v.toDevice().is_cuda()) {
      device = true;
      return c10::Device(c10::DeviceType::CPU);
    }
    return v.isGenerator() ? c10::IValue(generator(v.toGenerator())) : v;
  }
};

// CUDA moves indices that lie on the CPU.
bool takes_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put_";
}

c10::IValue returned(const c10::Argument& wanted, const c10::IValue& made, const c10::FunctionSchema& schema,
                     const std::vector<c10::IValue>& given) {
  if (auto alias = wanted.alias_info()) {
    TORCH_CHECK(alias->isWrite(), schema.name(), " is a view: give it a kernel of its own");
    for (size_t i = 0; i < given.size(); ++i) {
      auto info = schema.arguments()[i].alias_info();
      if (info && info->beforeSets() == alias->beforeSets()) return given[i];
    }
  }
  if (made.isTensor()) return on_device(made.toTensor());
  if (made.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : made.toTensorVector()) list.push_back(on_device(t));
    return list;
  }
  return made;
}

// A tensor of the device that a result is written to, and its twin on the CPU: whose shape may change, and which, if it
// is empty, gets memory of its own.
struct Written {
  at::Tensor tensor, host;

  explicit Written(const at::Tensor& t)
      : tensor(t), host(t.numel() ? on_host(t) : at::empty_like(t, t.options().device(c10::DeviceType::CPU))) {}

  void take_over() const {
    if (host.sizes() == tensor.sizes()) return;
    auto impl = tensor.unsafeGetTensorImpl();
    if (tensor.numel() == 0) impl->set_storage_keep_dtype(on_device(host).storage());
    impl->set_sizes_and_strides(host.sizes(), host.strides());
  }
};

bool is_written(const c10::Argument& argument, const c10::IValue& v) {
  return argument.alias_info() && argument.alias_info()->isWrite() && v.isTensor() && v.toTensor().is_cuda();
}

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  auto count = schema.arguments().size();
  auto given = torch::jit::pop(*stack, count);
  Given seen;
  torch::jit::Stack host;
  std::vector<Written> written;
  for (size_t i = 0; i < count; ++i)
    if (is_written(schema.arguments()[i], given[i])) {
      seen.device = true;
      written.emplace_back(given[i].toTensor());
      host.push_back(written.back().host);
    } else {
      host.push_back(seen.value(given[i]));
    }
  TORCH_CHECK(!(seen.device && seen.elsewhere) || takes_indices(schema.name()),
              "Expected all tensors to be on the same device, but found cuda:0 and cpu, in ", schema.name());
  TORCH_CHECK(!(seen.device && seen.drawn_on_host),
              "Expected a 'cuda' device type for generator but found 'cpu', in ", schema.name());
  op.callBoxed(&host);
  if (seen.of_device.defined()) seen.of_device.set_state(seen.of_host.get_state());
  for (const auto& each : written) each.take_over();
  for (size_t i = 0; i < host.size(); ++i)
    stack->push_back(seen.device ? returned(schema.returns()[i], host[i], schema, given) : host[i]);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool) {
  at::AutoDispatchBelowADInplaceOrView below;
  on_host(self).copy_(on_host(from));
  return self;
}

void record_stream(at::Tensor&, c10::Stream) {}

// CUDA makes a softmax of half precision in float32; the CPU's kernel wants it converted before.
at::Tensor widened(const at::Tensor& self, bool widens) { return widens ? on_host(self).to(at::kFloat) : on_host(self); }

at::Tensor softmax(const at::Tensor& self, int64_t dim, bool widens) {
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::_softmax(widened(self, widens), dim, false));
}

at::Tensor log_softmax(const at::Tensor& self, int64_t dim, bool widens) {
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::_log_softmax(widened(self, widens), dim, false));
}

at::Tensor softmax_backward(const at::Tensor& grad, const at::Tensor& out, int64_t dim, at::ScalarType type) {
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::_softmax_backward_data(on_host(grad), on_host(out), dim, grad.scalar_type()).to(type));
}

at::Tensor log_softmax_backward(const at::Tensor& grad, const at::Tensor& out, int64_t dim, at::ScalarType type) {
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::_log_softmax_backward_data(on_host(grad), on_host(out), dim, grad.scalar_type()).to(type));
}

// Its variant with a given output is what the fallback would get, and wants that in the shape of the input.
at::Tensor mse_loss(const at::Tensor& self, const at::Tensor& target, int64_t reduction) {
  at::AutoDispatchBelowADInplaceOrView below;
  return on_device(at::mse_loss(on_host(self), on_host(target), reduction));
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::as_strided_tensorimpl(self, size, stride);
}

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

}  // namespace

namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void* data) const override { return Pinned::holds(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  Device getDeviceFromPtr(void*) const override { return DEVICE; }
  Generator getNewGenerator(c10::DeviceIndex) const override { return make_generator<Numbers>(); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", copy_);
  m.impl("record_stream", record_stream);
  m.impl("view", at::native::view);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("mse_loss", mse_loss);
  m.impl("_softmax", softmax);
  m.impl("_log_softmax", log_softmax);
  m.impl("_softmax_backward_data", softmax_backward);
  m.impl("_log_softmax_backward_data", log_softmax_backward);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
}

extern "C" void install() {
  c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, new Guard());
  at::setHostAllocator(c10::DeviceType::CUDA, &pinned);
}
