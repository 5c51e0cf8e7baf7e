"""The reasons for losing: words, one of which is in the case's group/name, with the reason. The first that fits
counts."""

REASONS = [
    (("cold/",),
     "chunks of 32^3 are many small reads of the disk. Half of our time is the kernel's, for these and for the memory of new chunks"),
    ((".npy", ".nii"),
     "numpy holds one patch; we hold a buffer of patches that are ready"),
    (("random/96^3 of i16-blosc-zstd",),
     "with 512 MiB for its cache, and 615 in all, TensorStore holds nearly the whole int16 scan decoded, which has 534 MiB: its patches are "
     "copies. Ours holds 460 MiB in all, and decodes what does not fit. The peer with the fastest first patch only reads that patch"),
    (("random/", "scaling/random"),
     "the peer with the fastest first patch only reads that patch, and holds no patches that are ready"),
    (("labels/",),
     "MONAI then has the scan and the indices of all voxels of each label in memory, with many times the memory and many times "
     "the waiting time: a patch is one copy. Ours are decoded from chunks"),
    (("identity/", "classes/"),
     "the peers write uncompressed: encoding is the difference to our .npy. *In memory alone* compares our whole run, with reading, encoding "
     "and writing, with the peer's windows without these"),
    (("scaling/hann",),
     "decoding, encoding and writing are part of our time, in the same threads; the peer holds the scan and the result and writes it "
     "uncompressed. *In memory alone* excludes its reading and writing"),
]


def reason(title):
    return next((why for words, why in REASONS if any(word in title for word in words)), "not yet explained")
