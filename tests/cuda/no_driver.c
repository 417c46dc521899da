/* Lets autograd run a backward pass of fake CUDA tensors on a machine without a GPU or a driver.

Built and loaded by fake_device.py before torch is imported, so that torch finds these functions instead of its own and
the driver's. Autograd asks in each backward pass which devices have a context, and torch refuses to answer for a device it has not
counted. So a thread can set how many devices it sees. The rest are the functions of the driver that torch links to:
one answers that there is no context, the others fail, and none of them is called. */

static _Thread_local signed char devices = 0;

void set_num_devices(int number) { devices = (signed char)number; }

/* c10::cuda::device_count() */
signed char _ZN3c104cuda12device_countEv(void) { return devices; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 0;
  return 0;
}

#define FAILS(name) \
  int name(void) { return 100; } /* CUDA_ERROR_NO_DEVICE */

FAILS(cuCtxGetCurrent)
FAILS(cuCtxSetCurrent)
FAILS(cuDeviceGet)
FAILS(cuDeviceGetAttribute)
FAILS(cuDevicePrimaryCtxRetain)
FAILS(cuFuncGetAttribute)
FAILS(cuFuncSetAttribute)
FAILS(cuFuncSetCacheConfig)
FAILS(cuGetErrorString)
FAILS(cuLaunchCooperativeKernel)
FAILS(cuLaunchKernel)
FAILS(cuLinkAddData_v2)
FAILS(cuLinkComplete)
FAILS(cuLinkCreate_v2)
FAILS(cuModuleGetFunction)
FAILS(cuModuleLoad)
FAILS(cuModuleLoadData)
FAILS(cuModuleLoadDataEx)
FAILS(cuModuleUnload)
FAILS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
FAILS(cuPointerGetAttribute)
FAILS(cuTensorMapEncodeTiled)
