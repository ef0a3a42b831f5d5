"""Out of memory has a type of its own on a GPU, in Python and in numpy, but none in torch's CPU allocator."""

# DefaultCPUAllocator of Linux and macOS: "can't allocate memory"; of Windows: "not enough memory"
_WORDS = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
    )
