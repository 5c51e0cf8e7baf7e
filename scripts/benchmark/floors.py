"""The least seconds that a result could have taken on this machine: functions of the result and of what `limits` measured.

A result that does not tell what a floor needs has none.
"""


def reading(patch, voxel_bytes, chunk, codec, dtype):
    """The least seconds for a result: decoding the chunks that it says it decoded, and copying its patches."""
    def floor(result, limits):
        if "patches" not in result:
            return None
        seconds = result["patches"] * patch**3 * voxel_bytes / limits["copy"]
        if chunk and result.get("chunks") is not None:
            rate = limits.get(f"decode {codec} {dtype}", limits["copy"])
            seconds += result["chunks"] * chunk**3 * voxel_bytes / rate
        elif chunk:
            return None
        return seconds

    return floor


def blending(patches, patch, channels, output_bytes, codec, dtype):
    """Two passes over each prediction, to read and to add it, and the output once: encoded if it is, and written."""
    def floor(result, limits):
        passes = patches * patch**3 * 4 * (1 + channels) / limits["copy"]
        encode = output_bytes / limits.get(f"encode {codec} {dtype}", limits["copy"])
        return passes + encode

    return floor


def unpacking(decoded_bytes):
    return lambda _result, limits: decoded_bytes / limits["gunzip"]
