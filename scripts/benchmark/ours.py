"""Command lines of voxpatch."""


def demo(binary, folder, shape):
    return [binary, "demo", "--size", ",".join(map(str, shape)), "--keep", folder, "--json"]


def convert(binary, source, target, *flags):
    return [binary, "convert", source, target, "--overwrite", "--json", *flags]


def sample(binary, scan, patch, count, memory_mib, threads, *flags):
    return [binary, "sample", scan, "--patch-size", patch, "--samples-per-subject", count, "--memory", f"{memory_mib}MiB",
            "--threads", threads, "--json", *flags]


def infer(binary, scan, target, patch, overlap, *flags):
    return [binary, "infer", scan, target, "--patch-size", patch, "--overlap", overlap, "--overwrite", "--json", *flags]
