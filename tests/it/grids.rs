//! Volumes that are used together, stored with different axes or in part: nothing is ever mirrored.

use std::fs;

use serde_json::json;
use voxpatch::{Affine, Element, Geometry, Shape, Voxels};

use crate::tool::{Place, fails, json, succeeds, voxels};

const SHAPE: Shape = [8, 12, 16];

/// An order of axes, and the axes that run backwards; independent of the library.
type Code = ([usize; 3], [bool; 3]);

fn codes() -> Vec<Code> {
    let mut codes = Vec::new();
    for from in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        for n in 0..8 {
            codes.push((from, [n & 1 != 0, n & 2 != 0, n & 4 != 0]));
        }
    }
    codes
}

/// An oblique affine with different spacings: about z 2.5, y 0.8, x 0.7 mm.
const AFFINE: Affine = [
    [-0.7, 0.04, 0.1, 30.0],
    [0.03, -0.8, 0.2, 40.0],
    [0.02, 0.05, 2.5, -50.0],
    [0.0, 0.0, 0.0, 1.0],
];

/// Returns a volume stored with different axes: its voxels, shape and affine.
fn stored<T: Copy>(
    value: impl Fn(Shape) -> T,
    shape: Shape,
    affine: Affine,
    (from, flipped): Code,
) -> (Vec<T>, Shape, Affine) {
    let turned = from.map(|axis| shape[axis]);
    let mut all = Vec::new();
    for z in 0..turned[0] {
        for y in 0..turned[1] {
            for x in 0..turned[2] {
                let mut at = [0; 3];
                for (axis, n) in [z, y, x].into_iter().enumerate() {
                    at[from[axis]] = if flipped[axis] {
                        turned[axis] - 1 - n
                    } else {
                        n
                    };
                }
                all.push(value(at));
            }
        }
    }
    let mut new = affine;
    for (row, old) in new.iter_mut().zip(&affine).take(3) {
        for axis in 0..3 {
            let step = old[2 - from[axis]];
            row[2 - axis] = if flipped[axis] { -step } else { step };
            if flipped[axis] {
                row[3] += step * f64::from(u32::try_from(turned[axis] - 1).expect("small"));
            }
        }
    }
    (all, turned, new)
}

fn save<T: Element>(
    place: &Place,
    name: &str,
    value: impl Fn(Shape) -> T,
    (shape, affine): (Shape, Affine),
    code: Code,
) -> String
where
    Vec<T>: Into<Voxels>,
{
    let (voxels, shape, affine) = stored(value, shape, affine, code);
    place.store_at(name, shape, 1, voxels, Geometry::from_affine(affine))
}

fn number([z, y, x]: Shape) -> i16 {
    i16::try_from((z * SHAPE[1] + y) * SHAPE[2] + x).expect("small")
}

/// Returns foreground in one corner, with different lengths along all axes.
fn mask([z, y, x]: Shape) -> u8 {
    u8::from(z == 1 && (2..5).contains(&y) && (8..16).contains(&x)) * 5
}

const PLAIN: Code = ([0, 1, 2], [false; 3]);
const OTHER: Code = ([2, 0, 1], [true, false, true]);

#[test]
fn a_mask_on_any_axes_predicts_the_patches_that_it_covers() {
    let place = Place::new();
    for (n, image) in [PLAIN, OTHER].into_iter().enumerate() {
        let source = save(&place, &format!("{n}.nii"), number, (SHAPE, AFFINE), image);
        // A patch is predicted if it contains foreground of the mask.
        let covered = |[z, y, x]: Shape| {
            let near = |n: u64, lo: u64, hi: u64| (lo / 4..=(hi - 1) / 4).contains(&(n / 4));
            near(z, 1, 2) && near(y, 2, 5) && near(x, 8, 16)
        };
        let expected = |at: Shape| if covered(at) { number(at) } else { -1 };
        let (expected, ..) = stored(expected, SHAPE, AFFINE, image);
        let coarse = |[z, y, x]: Shape| {
            let any = (0..8).any(|n| mask([2 * z + n / 4, 2 * y + n / 2 % 2, 2 * x + n % 2]) > 0);
            u8::from(any)
        };
        let low = Geometry::from_affine(AFFINE).coarsened([2.0; 3]).affine;
        for (k, code) in codes().into_iter().enumerate() {
            let fine = save(&place, "mask.nii", mask, (SHAPE, AFFINE), code);
            let coarse = save(&place, "low.nii", coarse, (SHAPE.map(|n| n / 2), low), code);
            for mask in [fine, coarse] {
                let out = place.at("out.nii");
                let told = json(&[
                    "infer",
                    &source,
                    &out,
                    "--patch-size",
                    "4",
                    "--overlap",
                    "0",
                    "--mask",
                    &mask,
                    "--fill",
                    "-1",
                    "--overwrite",
                ]);
                assert_eq!(told["patches"], 2 * 2, "{n} {k} {mask}");
                let found = voxels(&out);
                let found = found.as_slice::<i16>().expect("i16");
                assert!(found == expected, "{n} {k} {mask}: another corner");
                fs::remove_file(&mask).expect("ours");
            }
        }
    }
}

#[test]
fn labels_on_any_axes_are_drawn_where_they_lie() {
    let place = Place::new();
    for (n, image) in [PLAIN, OTHER].into_iter().enumerate() {
        let source = save(&place, &format!("{n}.nii"), number, (SHAPE, AFFINE), image);
        let (expected, shape, _) = stored(mask, SHAPE, AFFINE, image);
        for (k, code) in codes().into_iter().enumerate() {
            let labels = save(&place, "labels.nii", mask, (SHAPE, AFFINE), code);
            let csv = place.at("at.csv");
            for way in ["--labels", "--weights"] {
                let told = json(&[
                    "sample",
                    &source,
                    way,
                    &labels,
                    "--patch-size",
                    "1",
                    "--samples-per-subject",
                    "40",
                    "--locations",
                    &csv,
                    "--overwrite",
                ]);
                assert_eq!(told["patches"], 40);
                let lines = fs::read_to_string(&csv).expect("locations");
                let mut seen = std::collections::HashSet::new();
                for line in lines.lines() {
                    let at: Vec<u64> = line
                        .split(',')
                        .map(|n| n.parse().expect("a number"))
                        .collect();
                    let voxel = (at[0] * shape[1] + at[1]) * shape[2] + at[2];
                    let label = expected[usize::try_from(voxel).expect("small")];
                    assert_eq!(label, 5, "{n} {k} {way}: {line}");
                    seen.insert(voxel);
                }
                assert!(seen.len() > 10, "{seen:?}");
            }
            fs::remove_file(&labels).expect("ours");
        }
    }
}

#[test]
fn an_overlay_on_any_axes_gives_the_same_picture() {
    let place = Place::new();
    let at = ["--at", "1,3,10"];
    let source = save(&place, "image.nii", number, (SHAPE, AFFINE), PLAIN);
    let picture = |overlay: &str, out: &str| {
        let out = place.at(out);
        let mut words = vec![
            "preview",
            &source,
            &out,
            "--overlay",
            overlay,
            "--overwrite",
        ];
        words.extend(at);
        let told = json(&words);
        assert_eq!(told["labels_shown"], 1);
        fs::read(&out).expect("a picture")
    };
    let own = save(&place, "own.nii", mask, (SHAPE, AFFINE), PLAIN);
    let expected = picture(&own, "own.png");
    for (k, code) in codes().into_iter().enumerate() {
        let overlay = save(&place, "overlay.nii", mask, (SHAPE, AFFINE), code);
        assert!(picture(&overlay, "out.png") == expected, "{k}");
        fs::remove_file(&overlay).expect("ours");
    }
    let mirrored = |[z, y, x]: Shape| mask([z, y, SHAPE[2] - 1 - x]);
    let overlay = save(&place, "mirrored.nii", mirrored, (SHAPE, AFFINE), PLAIN);
    let out = place.at("mirrored.png");
    succeeds(&[
        "preview",
        &source,
        &out,
        "--overlay",
        &overlay,
        at[0],
        at[1],
    ]);
    assert!(fs::read(&out).expect("a picture") != expected);
}

#[test]
fn what_lies_elsewhere_is_refused_by_every_command_with_the_numbers() {
    let place = Place::new();
    let source = save(&place, "image.nii", number, (SHAPE, AFFINE), PLAIN);
    let moved = |by: f64| {
        let mut affine = AFFINE;
        affine[2][3] += by;
        affine
    };
    let scaled = Geometry::from_affine(AFFINE).scaled(3.0).affine;
    let part = |value: fn(Shape) -> u8| value;
    for (name, shape, affine, said) in [
        (
            "far.nii",
            SHAPE,
            moved(500.0),
            "198.732 voxels along z, 0.1 allowed",
        ),
        ("half.nii", SHAPE, moved(1.25), "0.497 voxels along z"),
        ("spacing.nii", SHAPE, scaled, "spacing"),
        ("part.nii", [8, 12, 8], AFFINE, "extent"),
    ] {
        let other = save(&place, name, part(mask), (shape, affine), PLAIN);
        let out = place.at("out");
        let png = format!("{out}.png");
        let zarr = format!("{out}.zarr");
        for words in [
            vec![
                "infer",
                &source,
                &zarr,
                "--patch-size",
                "4",
                "--overlap",
                "0",
                "--mask",
                &other,
            ],
            vec![
                "sample",
                &source,
                "--patch-size",
                "1",
                "--samples-per-subject",
                "1",
                "--labels",
                &other,
            ],
            vec![
                "sample",
                &source,
                "--patch-size",
                "1",
                "--samples-per-subject",
                "1",
                "--weights",
                &other,
            ],
            vec!["preview", &source, &png, "--overlay", &other],
        ] {
            let line = fails(&words);
            assert!(line.contains(name) && line.contains(said), "{line}");
        }
    }
    // Off by rounding, and by more with a larger tolerance.
    for (by, more) in [(0.002, &[][..]), (0.3, &["--tolerance", "0.2"])] {
        let near = save(&place, "near.nii", mask, (SHAPE, moved(by)), PLAIN);
        let out = place.at("near.png");
        let mut words = vec!["preview", &source, &out, "--overlay", &near, "--overwrite"];
        words.extend(more);
        succeeds(&words);
        fs::remove_file(&near).expect("ours");
    }
}

#[test]
fn shapes_are_enough_only_where_nothing_is_known_or_it_is_said() {
    let place = Place::new();
    let (plain, _, _) = stored(mask, SHAPE, AFFINE, PLAIN);
    let source = save(&place, "image.nii", number, (SHAPE, AFFINE), PLAIN);
    let unknown = place.store("mask.npy", SHAPE, 1, plain.clone());
    let both = place.store("image.npy", SHAPE, 1, vec![3_i16; 8 * 12 * 16]);
    let out = place.at("out.zarr");
    let run = |source: &str, mask: &str, more: &[&str]| {
        let words = [
            "infer",
            source,
            &out,
            "--patch-size",
            "4",
            "--overlap",
            "0",
            "--overwrite",
        ];
        let mut words = words.to_vec();
        words.extend(["--mask", mask]);
        words.extend(more);
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let words = |all: &[String]| -> Vec<&'static str> {
        all.iter().map(|word| &*word.clone().leak()).collect()
    };
    let line = fails(&words(&run(&source, &unknown, &[])));
    assert!(
        line.contains("mask.npy")
            && line.contains("has no geometry")
            && line.contains("--same-grid"),
        "{line}"
    );
    for more in [
        run(&source, &unknown, &["--same-grid"]),
        run(&both, &unknown, &[]),
    ] {
        assert_eq!(json(&words(&more))["patches"], 4);
    }
    let turned = place.store("turned.npy", [12, 8, 16], 1, plain);
    let line = fails(&words(&run(&source, &turned, &["--same-grid"])));
    assert!(line.contains("[12, 8, 16]"), "{line}");
}

/// Returns an OME-Zarr of t, c, z, y, x = 3, 2, 5, 6, 7 with distinct voxels.
fn timed(place: &Place) -> String {
    let path = place.at("timed.zarr");
    let root = std::path::Path::new(&path);
    fs::create_dir_all(root.join("0")).expect("ours");
    let write = |name: &str, text: String| fs::write(root.join(name), text).expect("ours");
    write(".zgroup", r#"{"zarr_format": 2}"#.to_owned());
    let axis = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let space = |name: &str| json!({"name": name, "type": "space", "unit": "millimeter"});
    let axes = [
        axis("t", "time"),
        axis("c", "channel"),
        space("z"),
        space("y"),
        space("x"),
    ];
    let scale = json!([{"type": "scale", "scale": [1.0, 1.0, 3.0, 2.0, 0.5]}]);
    let datasets = json!([{"path": "0", "coordinateTransformations": scale}]);
    let image = json!({"version": "0.4", "axes": axes, "datasets": datasets});
    write(".zattrs", json!({"multiscales": [image]}).to_string());
    let array = json!({
        "zarr_format": 2, "shape": [3, 2, 5, 6, 7], "chunks": [1, 2, 4, 4, 4], "dtype": "<u2",
        "compressor": null, "fill_value": 0, "order": "C", "filters": null,
    });
    write("0/.zarray", array.to_string());
    for (t, z, y, x) in (0..24).map(|n| (n / 8, n / 4 % 2, n / 2 % 2, n % 2)) {
        let mut bytes = Vec::new();
        for c in 0..2_u16 {
            for n in 0..64_u16 {
                let at = [4 * z + n / 16, 4 * y + n / 4 % 4, 4 * x + n % 4];
                bytes.extend(value(t, c, at).to_le_bytes());
            }
        }
        fs::write(root.join(format!("0/{t}.0.{z}.{y}.{x}")), bytes).expect("ours");
    }
    path
}

fn value(time: u16, channel: u16, at: [u16; 3]) -> u16 {
    (((time * 2 + channel) * 5 + at[0]) * 6 + at[1]) * 7 + at[2]
}

/// Returns the words with a time point, a channel and a box.
fn chosen(words: &[&str]) -> Vec<String> {
    let flags = ["--time", "1", "--channels", "1", "--box", "1:4,:5,2:"];
    let all = words.iter().chain(&flags);
    all.map(ToString::to_string).collect()
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

#[test]
fn a_time_point_a_channel_and_a_box_are_taken_by_every_command() {
    let place = Place::new();
    let source = timed(&place);
    let mut expected: Vec<u16> = Vec::new();
    for z in 1..4 {
        for y in 0..5 {
            expected.extend((2..7).map(|x| value(1, 1, [z, y, x])));
        }
    }
    let told = json(&words(&chosen(&["info", &source])));
    assert_eq!(
        (&told["channels"], &told["shape"]),
        (&json!(1), &json!([3, 5, 5]))
    );
    let affine = json!([
        [0.5, 0.0, 0.0, 1.0],
        [0.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 3.0, 3.0],
        [0.0, 0.0, 0.0, 1.0]
    ]);
    assert_eq!(told["affine"], affine);
    let (converted, predicted) = (place.at("part.nii"), place.at("out.nii"));
    succeeds(&words(&chosen(&["convert", &source, &converted])));
    let run = [
        "infer",
        &source,
        &predicted,
        "--patch-size",
        "3",
        "--overlap",
        "1",
    ];
    succeeds(&words(&chosen(&run)));
    for path in [&converted, &predicted] {
        assert_eq!(
            voxels(path).as_slice::<u16>().expect("u16"),
            expected,
            "{path}"
        );
        assert_eq!(json(&["info", path])["affine"], affine, "{path}");
    }
    let (one, two) = (place.at("one.png"), place.at("two.png"));
    // Zarr does not state an orientation, so that its picture has no letters; the file to compare with is Zarr, too.
    let stored = place.at("part.zarr");
    succeeds(&words(&chosen(&["convert", &source, &stored])));
    succeeds(&words(&chosen(&["preview", &source, &one])));
    succeeds(&["preview", &stored, &two]);
    assert!(fs::read(&one).expect("a picture") == fs::read(&two).expect("a picture"));
}

/// Returns label maps of the whole and of the box, whose second channel has one voxel of foreground.
fn maps(place: &Place) -> [String; 2] {
    let labels = |[z, y, x]: Shape| u8::from([z, y, x] == [2, 1, 4]);
    let both = |shape: Shape, start: Shape| -> Vec<u8> {
        let mut all = vec![1; usize::try_from(shape.iter().product::<u64>()).expect("small")];
        for z in 0..shape[0] {
            for y in 0..shape[1] {
                for x in 0..shape[2] {
                    all.push(labels([z + start[0], y + start[1], x + start[2]]));
                }
            }
        }
        all
    };
    let geometry = Geometry::from_spacing([3.0, 2.0, 0.5]);
    let (whole, part) = ([5, 6, 7], [3, 5, 5]);
    let moved = geometry.moved_to([1.0, 0.0, 2.0]);
    [
        place.store_at("whole.nii", whole, 2, both(whole, [0; 3]), geometry),
        place.store_at("box.nii", part, 2, both(part, [1, 0, 2]), moved),
    ]
}

#[test]
fn maps_and_masks_of_the_whole_or_of_the_box_go_with_a_box() {
    let place = Place::new();
    let source = timed(&place);
    let maps = maps(&place);
    let patches = place.at("patches.zarr");
    for map in &maps {
        let run = [
            "sample",
            &source,
            "--patch-size",
            "1",
            "--samples-per-subject",
            "4",
            "--out",
            &patches,
            "--labels",
            map,
            "--label-channel",
            "1",
            "--overwrite",
        ];
        succeeds(&words(&chosen(&run)));
        let found = voxels(&patches);
        assert_eq!(
            found.as_slice::<u16>().expect("u16"),
            [value(1, 1, [2, 1, 4]); 4]
        );
        let line = fails(&words(&chosen(&[
            "sample",
            &source,
            "--patch-size",
            "1",
            "--samples-per-subject",
            "4",
            "--labels",
            map,
            "--label-channel",
            "2",
        ])));
        assert!(line.contains("channels 2..3"), "{line}");
    }
    // A mask of the whole or of the box.
    for map in &maps {
        let masked = place.at("masked.nii");
        let mask = map.replace(".nii", "_mask.nii");
        succeeds(&["convert", map, &mask, "--channels", "1", "--overwrite"]);
        let run = [
            "infer",
            &source,
            &masked,
            "--patch-size",
            "1",
            "--overlap",
            "0",
            "--mask",
            &mask,
            "--overwrite",
        ];
        assert_eq!(json(&words(&chosen(&run)))["patches"], 1, "{map}");
        let found = voxels(&masked);
        let set: Vec<u16> = found.as_slice::<u16>().expect("u16").to_vec();
        assert_eq!(set.iter().max(), Some(&value(1, 1, [2, 1, 4])));
        assert_eq!(set.iter().filter(|&&v| v > 0).count(), 1);
    }
}

#[test]
fn a_run_over_a_part_is_resumed_by_the_same_part_only() {
    let place = Place::new();
    let source = timed(&place);
    let run = |out: &str, more: &[&str]| {
        let fixed = ["infer", &source, out, "--patch-size", "2", "--overlap", "0"];
        let all = [&fixed[..], &["--chunk", "2", "--shard", "none"], more].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let of_part = |out: &str, more: &[&str]| chosen(&words(&run(out, more)));
    let whole = place.at("whole.zarr");
    succeeds(&words(&of_part(&whole, &[])));
    let out = place.at("parts.zarr");
    let first = json(&words(&of_part(&out, &["--part", "0/2"])));
    assert_eq!(first["whole"], false);
    for other in [
        ["--time", "0", "--channels", "1", "--box", "1:4,:5,2:"],
        ["--time", "1", "--channels", "0", "--box", "1:4,:5,2:"],
        ["--time", "1", "--channels", "1", "--box", "2:5,:5,2:"],
        ["--time", "1", "--channels", "1", "--box", "1:4,1:,2:"],
    ] {
        let more = [&["--part", "1/2"][..], &other].concat();
        fails(&words(&run(&out, &more)));
    }
    let last = json(&words(&of_part(&out, &["--part", "1/2"])));
    assert_eq!(last["whole"], true);
    assert_eq!(voxels(&out).bytes(), voxels(&whole).bytes());
    let resumed = place.at("resumed.zarr");
    succeeds(&words(&of_part(&resumed, &["--resume"])));
    assert_eq!(voxels(&resumed).bytes(), voxels(&whole).bytes());
}

#[test]
fn a_patch_that_does_not_fit_says_what_helps() {
    let place = Place::new();
    let source = timed(&place);
    let out = place.at("out.zarr");
    let sample = [
        "sample",
        &source,
        "--patch-size",
        "6",
        "--samples-per-subject",
        "1",
    ];
    let line = fails(&sample);
    assert!(line.contains("(--border pad)"), "{line}");
    let infer = [
        "infer",
        &source,
        &out,
        "--patch-size",
        "6",
        "--overlap",
        "0",
    ];
    let line = fails(&infer);
    assert!(line.contains("(--padding)"), "{line}");
}

#[test]
fn parts_that_are_not_there_are_refused() {
    let place = Place::new();
    let source = timed(&place);
    for (flags, said) in [
        (["--time", "3"], "time points 3..4"),
        (["--channels", "6"], "channels 6..7"),
        (["--box", "0:6,:,:"], "0..6 along z"),
        (["--box", ":,:,7:"], "7..7 along x"),
    ] {
        let line = fails(&["info", &source, flags[0], flags[1]]);
        assert!(line.contains(said), "{line}");
    }
    let plain = place.small("plain.nii");
    let line = fails(&["info", &plain, "--time", "0"]);
    assert!(line.contains("plain.nii"), "{line}");
}
