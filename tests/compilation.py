"""How the tests compile: quickly, since most of their time is compilation.

What they compile runs once or a few times on small arrays. The program before code
generation is the one that users get; what counts its kernels reads it from there.
"""

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = f"{QUICK} --xla_force_host_platform_device_count=8"
