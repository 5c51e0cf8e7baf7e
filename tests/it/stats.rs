//! `voxpatch stats` from outside: what it measures, keeps and refuses.

use std::fs;

use serde_json::Value as Json;

use crate::tool::{Place, fails, is_refused, json, names, ramp, succeeds};

fn channel(found: &Json) -> &Json {
    &found["channels"][0]
}

#[test]
fn volumes_are_measured_alone_and_together_with_their_labels() {
    let place = Place::new();
    let count = 20 * 24 * 28;
    let one = place.small("a.zarr");
    let other = place.store("b.nii", [20, 24, 28], 1, ramp(count));
    let label = |n: i16| u8::from(n % 28 < 7) * 3;
    let labels: Vec<u8> = (0..count).map(label).collect();
    let labels = place.store("labels.zarr", [20, 24, 28], 1, labels);
    let found = json(&[
        "stats",
        &one,
        &other,
        "--labels",
        &labels,
        &labels,
        "--percentiles",
        "50,100",
        "--threads",
        "2",
    ]);
    for volume in found["volumes"].as_array().expect("a list") {
        let own = channel(volume);
        assert_eq!(
            (&own["count"], &own["minimum"]),
            (&count.into(), &Json::from(-2000.0))
        );
        assert_eq!(own["maximum"], f64::from(count) - 2001.0);
        assert_eq!(
            own["percentiles"]["50"],
            f64::from(count - 1) / 2.0 - 2000.0
        );
        assert_eq!(own["percentile_error"], 0.0);
        assert_eq!(own["nonzero"]["count"], count - 1);
        assert_eq!(own["foreground"]["count"], count / 4);
        assert_eq!(
            volume["labels"]["3"]["box"],
            serde_json::json!([0, 0, 0, 20, 24, 7])
        );
        assert_eq!(volume["spacing"], serde_json::json!([2.0, 1.0, 0.5]));
    }
    assert_eq!(found["all"]["volumes"], 2);
    assert_eq!(channel(&found["all"])["count"], 2 * count);
    assert_eq!(found["all"]["labels"]["0"]["voxels"], 2 * 3 * (count / 4));
    let table = succeeds(&["stats", &one]);
    assert!(
        table.contains("13440 voxels, -2000 to 11439, mean 4719.5"),
        "{table}"
    );
    let ignored = json(&["stats", &one, "--labels", &labels, "--ignore-label", "0"]);
    assert_eq!(channel(&ignored["all"])["count"], count / 4);
    assert!(fails(&["stats", &one, &other, "--labels", &labels]).contains("one for each"));
    is_refused(&["stats", &one, "--percentiles", "101"]);
    is_refused(&["stats"]);
    assert!(fails(&["stats", &one, "--labels", &place.at("none.npy")]).contains("none.npy"));
}

#[test]
fn kept_results_resume_a_data_set() {
    let place = Place::new();
    let one = place.store("a.npy", [4, 5, 6], 1, ramp(120));
    let results = place.at("done");
    let first = json(&["stats", &one, "--results", &results]);
    let kept = names(&place.path().join("done"));
    assert_eq!(kept.len(), 1);
    let path = place.path().join("done").join(&kept[0]);
    let text = fs::read_to_string(&path).expect("the result");
    // What is kept is read, and not measured again.
    let changed = text.replacen("\"channels\":[[[0,", "\"channels\":[[[5,", 1);
    assert_ne!(changed, text);
    fs::write(&path, changed).expect("our folder");
    let other = place.store("b.npy", [4, 5, 6], 1, ramp(120));
    let both = json(&["stats", &one, &other, "--results", &results]);
    assert_eq!(channel(&both["volumes"][0])["not_finite"], 5);
    assert_eq!(channel(&both["volumes"][1])["not_finite"], 0);
    assert_eq!(
        channel(&both["volumes"][0])["mean"],
        channel(&first["all"])["mean"]
    );
    assert_eq!(names(&place.path().join("done")).len(), 2);
    assert!(fails(&["stats", &one, "--results", &one]).contains("a.npy"));
}

#[test]
fn a_large_volume_takes_little_memory() {
    let place = Place::new();
    let path = place.at("a.mhd");
    let header = "ObjectType = Image\nNDims = 3\nDimSize = 512 512 256\nElementType = MET_SHORT\n\
                  ElementSpacing = 1 1 1\nElementDataFile = a.raw\n";
    fs::write(&path, header).expect("our folder");
    // A file without blocks on disk.
    let voxels = fs::File::create(place.at("a.raw")).expect("our folder");
    voxels.set_len(2 * 256 * 512 * 512).expect("a sparse file");
    let found = json(&["stats", &path, "--threads", "2"]);
    assert_eq!(channel(&found["all"])["count"], 256 * 512 * 512);
    let peak = found["peak_anonymous_bytes"]
        .as_u64()
        .expect("a number on Linux");
    assert!(peak < 48 << 20, "{peak}");
}
