"""The reasons for losing: words, one of which is in the case's group/name, with the reason. The first that fits
counts."""

REASONS = [
    (("cold/64 of 96^3 of f32.npy", "cold/64 of 96^3 of i16.npy"),
     "planes are read for all patches of the buffer at once, several times as many bytes as the patches have. That pays where the file is "
     "in the page cache; here the disk has to bring them, and numpy asks for the pages of its patch only"),
    (("cold/",),
     "chunks of 32^3 are many small requests to the disk. Each of our threads has two more under way while it reads one; TensorStore has "
     "eight"),
    ((".npy", ".nii"),
     "numpy keeps every page that it has touched mapped, the whole file in the end, and no patch for later. We hold a buffer of patches, "
     "give pages back so that no more is held than the budget says, and pay a fault when one is touched anew. The first patch comes later "
     "since what is read for it is read for the whole buffer"),
    (("random/96^3 of i16-blosc-zstd",),
     "with 512 MiB for its cache, and 615 in all, TensorStore holds nearly the whole int16 scan decoded, which has 534 MiB: its patches are "
     "copies. Ours holds 414 MiB, most of it patches that wait. The peer that is first with a single patch reads no more than that patch"),
    (("random/", "scaling/random"),
     "the peer that is first with a single patch reads no more than that patch and keeps nothing; ours is read together with those of "
     "the whole buffer, which the budget is for"),
    (("labels/",),
     "MONAI has the scan and the indices of all voxels of each label in memory by then, in many times the memory and after many times "
     "the wait: a patch is one copy. Ours are decoded from chunks"),
    (("identity/", "classes/"),
     "the peers write uncompressed: encoding is the difference to our own .npy. *In memory alone* is our whole run, with reading, encoding "
     "and writing, beside the peer's windows without"),
    (("scaling/hann",),
     "decoding, encoding and writing are part of our time, in the same threads; the peer holds the scan and the result and writes it "
     "uncompressed. *In memory alone* leaves its reading and writing out"),
]


def reason(title):
    return next((why for words, why in REASONS if any(word in title for word in words)), "not yet explained")
