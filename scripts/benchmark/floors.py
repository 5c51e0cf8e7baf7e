"""The minimum time of a result on this machine: functions of the result and of the measurements of `limits`.

A result without the figures that a floor needs has no floor.
"""


def reading(patch, voxel_bytes, chunk, codec, dtype):
    """Returns the minimum seconds of a result: decoding the chunks that it reports as decoded, and copying its
    patches."""
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
    """Returns the minimum seconds of two passes over each prediction (reading and adding) and of encoding, if any, and
    writing the output."""
    def floor(result, limits):
        passes = patches * patch**3 * 4 * (1 + channels) / limits["copy"]
        encode = output_bytes / limits.get(f"encode {codec} {dtype}", limits["copy"])
        return passes + encode

    return floor


def unpacking(decoded_bytes):
    return lambda _result, limits: decoded_bytes / limits["gunzip"]
