//! Networks of tests/data/onnx, compared with what ONNX Runtime computed (`scripts/make_onnx.py`).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use super::super::network::PREPARED_SHAPES;
use super::*;
use crate::inference::builtin_model;
use crate::region::Region;
use crate::volume::{VolumeExt, open};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.onnx"))
}

/// Returns a stored array (c, z, y, x).
fn array(name: &str) -> Patch {
    let volume = open(folder().join(format!("{name}.npy"))).unwrap();
    volume.read(Region::whole(volume.layout().shape)).unwrap()
}

/// Returns a network and its stored input as f32.
fn network(name: &str) -> (Onnx, Patch) {
    let input = array(&format!("{name}.in")).converted(DType::F32);
    (Onnx::open(file(name)).unwrap(), input)
}

fn layout(of: &Patch) -> Layout {
    Layout::new(of.shape(), of.channels(), DType::F32)
}

fn assert_close(name: &str, found: &Patch, expected: &Patch) {
    assert_eq!(
        (found.channels(), found.shape()),
        (expected.channels(), expected.shape()),
        "{name}"
    );
    let (found, expected) = (
        found.clone().converted(DType::F64),
        expected.clone().converted(DType::F64),
    );
    let pairs = found
        .as_slice::<f64>()
        .unwrap()
        .iter()
        .zip(expected.as_slice::<f64>().unwrap());
    for (found, expected) in pairs {
        let error = (found - expected).abs();
        assert!(
            error <= 1e-4 * expected.abs().max(1.0),
            "{name}: {found} {expected}"
        );
    }
}

/// All networks, with the halo and the scale of their outputs.
const NETWORKS: [(&str, &[(u64, u64)]); 35] = [
    ("argmax", &[(0, 1)]),
    ("average_pool", &[(0, 2)]),
    ("batch_norm", &[(0, 1)]),
    ("cast_int64", &[(0, 1); 3]),
    ("concat", &[(0, 1)]),
    ("conv", &[(0, 1)]),
    ("conv_dilated_grouped", &[(0, 1)]),
    ("conv_stride", &[(0, 2)]),
    ("conv_transpose", &[(0, 1)]),
    ("conv_transpose_padded", &[(0, 1)]),
    ("conv_valid", &[(2, 1)]),
    ("double", &[(0, 1)]),
    ("fixed", &[(0, 1)]),
    ("fixed_batch_of_3", &[(0, 1)]),
    ("group_norm", &[(0, 1)]),
    ("group_norm_21", &[(0, 1)]),
    ("half", &[(0, 1)]),
    ("instance_norm", &[(0, 1)]),
    ("leaky_relu", &[(0, 1)]),
    ("max_pool", &[(0, 2)]),
    ("pad_edge", &[(0, 1)]),
    ("prelu", &[(0, 1)]),
    ("resize_10", &[(0, 1)]),
    ("resize_11", &[(0, 1)]),
    ("resize_like", &[(0, 1)]),
    ("resize_linear", &[(0, 1)]),
    ("resize_linear_corners", &[(0, 1)]),
    ("resize_nearest", &[(0, 1)]),
    ("sigmoid", &[(0, 1)]),
    ("softmax", &[(0, 1)]),
    ("tissue", &[(0, 1)]),
    ("types", &[(0, 1); 12]),
    ("unet", &[(0, 1), (0, 2)]),
    ("upsample_9", &[(0, 1)]),
    ("wrong_output", &[]),
];

#[test]
fn every_network_of_the_folder_is_in_the_table() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| !name.starts_with("wrong_") || name == "wrong_output")
        .collect();
    names.sort();
    assert_eq!(names, NETWORKS.map(|(name, _)| name.to_owned()));
}

#[test]
fn every_network_computes_what_onnx_runtime_does() {
    for (name, places) in NETWORKS
        .into_iter()
        .filter(|(_, places)| !places.is_empty())
    {
        let (model, input) = network(name);
        let outputs = model.0.outputs(&layout(&input), input.shape()).unwrap();
        let found: Vec<_> = outputs.iter().map(|out| (out.halo[0], out.scale)).collect();
        assert_eq!(found, places, "{name}");
        let all = model
            .0
            .predict_all(std::slice::from_ref(&input), &PatchPool::default())
            .unwrap();
        assert_eq!(all.len(), outputs.len(), "{name}");
        for (k, (predicted, output)) in all.iter().zip(&outputs).enumerate() {
            assert_eq!(predicted[0].dtype(), output.dtype, "{name}");
            assert_close(name, &predicted[0], &array(&format!("{name}.out{k}")));
        }
    }
}

#[test]
fn predictions_come_from_the_pool_and_inputs_go_there() {
    let (model, input) = network("unet");
    let expected = model.predict(vec![input.clone()]).unwrap();
    let pool = PatchPool::new(2, 64 << 20);
    let batch = pool.begin();
    let given = input.bytes().as_ptr();
    let (shape, channels) = (Region::whole(input.shape()), input.channels());
    let twin = input.clone();
    let first = model.predict_pooled(vec![input], batch.pool()).unwrap();
    assert_eq!(first, expected);
    let spare = batch.pool().take(shape, channels, DType::F32).unwrap();
    assert_eq!(spare.bytes().as_ptr(), given);
    let places =
        |all: &[Vec<Patch>]| -> Vec<_> { all.iter().map(|one| one[0].bytes().as_ptr()).collect() };
    let before = places(&first);
    for patch in first.into_iter().flatten() {
        batch.pool().give(patch);
    }
    let second = model.predict_pooled(vec![twin], batch.pool()).unwrap();
    assert_eq!(second, expected);
    assert_eq!(places(&second), before);
}

/// Returns `count` patches at different places with different values.
fn patches(of: &Patch, count: u8) -> Vec<Patch> {
    let values: &[f32] = of.as_slice().unwrap();
    let patch = |n: u8| {
        let values: Vec<f32> = values.iter().map(|v| v * (1.0 + f32::from(n))).collect();
        let region = Region::new([i64::from(n), 0, 3], of.shape());
        Patch::new(region, of.channels(), values).unwrap()
    };
    (0..count).map(patch).collect()
}

#[test]
fn a_batch_gives_what_its_patches_give_alone_and_each_its_place() {
    for name in ["conv", "fixed", "fixed_batch_of_3", "unet", "instance_norm"] {
        let (model, input) = network(name);
        let batch = patches(&input, 4);
        let together = model.predict(batch.clone()).unwrap().remove(0);
        assert_eq!(together.len(), 4, "{name}");
        for (together, patch) in together.iter().zip(batch) {
            assert_eq!(together.region(), patch.region(), "{name}");
            let alone = model.predict(vec![patch]).unwrap().remove(0).remove(0);
            assert_close(name, together, &alone);
        }
    }
}

#[test]
fn threads_share_a_network_and_get_the_same_values() {
    let (model, input) = network("unet");
    let batch = patches(&input, 3);
    let alone = model.predict(batch.clone()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(model.predict(batch.clone()).unwrap(), alone));
        }
    });
    assert_eq!(model.0.ready.lock().unwrap().len(), 1, "made ready once");
}

#[test]
fn open_lengths_take_any_patch_and_few_are_kept_ready() {
    let (model, input) = network("conv");
    for length in 3..12 {
        let region = Region::whole([length, 4, 5]);
        let patch = Patch::zeros(region, input.channels(), DType::F32).unwrap();
        let out = model.predict(vec![patch]).unwrap().remove(0).remove(0);
        assert_eq!((out.region(), out.channels()), (region, 3));
    }
    assert_eq!(model.0.ready.lock().unwrap().len(), PREPARED_SHAPES);
}

#[test]
fn tissues_follow_from_the_mean_of_neighbors() {
    let (model, input) = network("tissue");
    let hu = input.to_array::<f32>().unwrap();
    let scores = model.predict(vec![input]).unwrap().remove(0).remove(0);
    let scores = scores.to_array::<f32>().unwrap();
    let (_, nz, ny, nx) = hu.dim();
    let mut seen = [0; 4];
    for ((z, y, x), _) in hu.index_axis(ndarray::Axis(0), 0).indexed_iter() {
        let near = |n: usize, length: usize| [n.saturating_sub(1), n, (n + 1).min(length - 1)];
        let mut mean = 0.0;
        for z in near(z, nz) {
            for y in near(y, ny) {
                mean += near(x, nx).map(|x| hu[[0, z, y, x]]).iter().sum::<f32>() / 27.0;
            }
        }
        let distances = [-1000.0, -700.0, 40.0, 700.0].map(|tissue: f32| (mean - tissue).abs());
        let nearest = (0..4).min_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        let highest = (0..4).max_by(|&a, &b| scores[[a, z, y, x]].total_cmp(&scores[[b, z, y, x]]));
        assert_eq!(nearest, highest);
        seen[nearest.unwrap()] += 1;
    }
    assert!(seen.iter().filter(|&&n| n > 0).count() > 1, "{seen:?}");
}

#[test]
fn files_that_are_not_networks_for_volumes_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.onnx");
    let error = Onnx::open(&missing).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == missing),
        "{error}"
    );
    for content in ["", "name,age\nAnna,41\n", "\u{8}\u{7}", "{\"a\": 1}"] {
        let path = dir.path().join("text.onnx");
        fs::write(&path, content).unwrap();
        let error = Onnx::open(&path).unwrap_err().to_string();
        assert!(error.contains("text.onnx"), "{error}");
        assert!(error.contains("not an ONNX file"), "{content:?}: {error}");
    }
    let error = Onnx::open(file("wrong_rank")).unwrap_err().to_string();
    assert!(error.contains("but has \"volume\" of 4 axes"), "{error}");
    let error = Onnx::open(file("wrong_operator")).unwrap_err();
    let Error::ModelOperator {
        path,
        node,
        operator,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*path, file("wrong_operator"));
    assert_eq!((&**node, &**operator), ("node_7", "example.org.Frobnicate"));
}

#[test]
fn networks_that_would_be_computed_differently_are_refused_by_name() {
    for (name, told) in [
        (
            "wrong_domain",
            "node \"node_7\" has the operator example.org.Sigmoid",
        ),
        ("wrong_new", "operator set 99, and sets 7 to 22 can be run"),
        ("wrong_old", "operator set 6, and sets 7 to 22 can be run"),
        ("wrong_output_twice", "its output \"out\" is defined twice"),
        ("wrong_value_twice", "its value \"out\" is defined twice"),
        ("wrong_nothing", "no node computes its output \"out\""),
        (
            "wrong_type",
            "its input takes int16, not float, float16 or double",
        ),
        (
            "wrong_bfloat",
            "its input takes bfloat16, not float, float16 or double",
        ),
        ("wrong_shapeless", "has \"volume\" of unknown axes"),
        (
            "wrong_inputs",
            "\"volume\" of 5 axes and \"second\" of 5 axes",
        ),
        (
            "wrong_outside",
            "weights in \"../../../Cargo.toml\", which is not in its folder",
        ),
    ] {
        let error = Onnx::open(file(name)).unwrap_err();
        let typed = matches!(error, Error::ModelFile { .. } | Error::ModelOperator { .. });
        let error = error.to_string();
        assert!(typed && error.contains(told), "{name}: {error}");
        assert!(error.contains(&format!("{name}.onnx")), "{error}");
    }
    let error = Onnx::open(file("wrong_gone")).unwrap_err();
    let gone = folder().join("gone.bin");
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == gone),
        "{error}"
    );
}

#[test]
fn external_weights_are_part_of_a_model_s_identity() {
    let dir = tempfile::tempdir().unwrap();
    let (network, weights) = (dir.path().join("net.onnx"), dir.path().join("gone.bin"));
    fs::copy(file("wrong_gone"), &network).unwrap();
    let mut ids = Vec::new();
    for value in [2.0_f32, 3.0] {
        fs::write(&weights, value.to_le_bytes()).unwrap();
        let model = Onnx::open(&network).unwrap();
        let patch = Patch::zeros(Region::whole([2; 3]), 1, DType::F32).unwrap();
        let out = model.predict(vec![patch]).unwrap().remove(0).remove(0);
        assert_eq!(out.as_slice::<f32>().unwrap(), [value; 8]);
        ids.push(model.id().unwrap());
    }
    assert_ne!(ids[0], ids[1]);
    fs::write(&weights, [0; 2]).unwrap();
    assert!(Onnx::open(&network).is_err(), "cut short");
    fs::remove_file(&weights).unwrap();
    std::os::unix::fs::symlink(file("unet"), &weights).unwrap();
    let error = Onnx::open(&network).unwrap_err().to_string();
    assert!(error.contains("not in its folder"), "{error}");
}

#[test]
fn every_type_of_output_is_the_volume_s_and_labels_stay_whole_numbers() {
    let types = |name: &str| -> Vec<DType> {
        let (model, input) = network(name);
        let outputs = model.0.outputs(&layout(&input), input.shape()).unwrap();
        outputs.iter().map(|output| output.dtype).collect()
    };
    assert_eq!(types("cast_int64"), [DType::I64; 3]);
    assert_eq!(types("argmax"), [DType::I64]);
    assert_eq!(types("double"), [DType::F64]);
    let all = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::U32,
        DType::I32,
        DType::U64,
        DType::I64,
        DType::F16,
        DType::F32,
        DType::F64,
    ];
    assert_eq!(types("types"), all);
}

#[test]
fn a_patch_that_does_not_work_is_refused_with_the_multiple_that_does() {
    let volume = Layout::new([32; 3], 1, DType::I16);
    let model = Onnx::open(file("unet")).unwrap();
    for patch in [[7; 3], [8, 7, 8], [5, 8, 12]] {
        let error = model.outputs(&volume, patch).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ModelRun {
                    multiple: Some(2),
                    ..
                }
            ),
            "{patch:?}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.ends_with("it works with patches whose lengths are multiples of 2"),
            "{text}"
        );
    }
    // With one number per channel, no multiple helps.
    let model = Onnx::open(file("wrong_output")).unwrap();
    let error = model.outputs(&volume, [7; 3]).unwrap_err().to_string();
    assert!(!error.contains("multiples"), "{error}");
    // No output of half the size can be centered in an odd patch.
    let two = Layout::new([32; 3], 2, DType::I16);
    let model = Onnx::open(file("max_pool")).unwrap();
    let error = model.outputs(&two, [7, 8, 8]).unwrap_err().to_string();
    assert!(error.contains("multiples of 2"), "{error}");
}

/// Returns a field of bytes in protocol buffers' encoding.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut length) = (vec![number << 3 | 2], bytes.len());
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend(bytes);
    out
}

/// Returns an ONNX file of `count` pairs of nodes.
fn long_network(count: usize) -> Vec<u8> {
    let node = |operator: &str, inputs: &[&str], output: &str| {
        let inputs = inputs.iter().flat_map(|name| field(1, name.as_bytes()));
        let mut node: Vec<u8> = inputs.collect();
        node.extend(field(2, output.as_bytes()));
        node.extend(field(4, operator.as_bytes()));
        field(1, &node)
    };
    let value = |name: &str| {
        let axes = ["n", "c", "z", "y", "x"].map(|axis| field(1, &field(2, axis.as_bytes())));
        let tensor = [vec![8, 1], field(2, &axes.concat())].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let mut graph = field(2, b"long");
    let mut names = ["volume".to_owned(), "volume".to_owned()];
    for n in 0..count {
        let [before, last] = &names;
        let (half, next) = (format!("h{n}"), format!("v{n}"));
        graph.extend(node("Softsign", &[last], &half));
        graph.extend(node("Add", &[&half, before], &next));
        names = [names[1].clone(), next];
    }
    graph.extend(field(11, &value("volume")));
    graph.extend(field(12, &value(&names[1])));
    let opset = field(8, &[16, 18]);
    [vec![8, 8], field(7, &graph), opset].concat()
}

#[test]
fn a_network_of_many_nodes_is_made_ready_in_parts_and_computes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for pairs in [3, 250, 2500] {
        let path = dir.path().join(format!("{pairs}.onnx"));
        fs::write(&path, long_network(pairs)).unwrap();
        let began = std::time::Instant::now();
        let model = Onnx::open(&path).unwrap();
        let values = vec![0.5_f32, -2.0, 0.0, 1e-3, 7.0, -0.1, 3.0, 1.0];
        let patch = Patch::new(Region::whole([2; 3]), 1, values.clone()).unwrap();
        let outputs = model.outputs(&layout(&patch), patch.shape()).unwrap();
        println!("{} nodes are ready after {:?}", 2 * pairs, began.elapsed());
        assert_eq!(outputs[0].dtype, DType::F32);
        let found = model.predict(vec![patch]).unwrap().remove(0).remove(0);
        for (found, value) in found.as_slice::<f32>().unwrap().iter().zip(values) {
            let mut last = [value, value];
            for _ in 0..pairs {
                last = [last[1], last[1] / (1.0 + last[1].abs()) + last[0]];
            }
            let error = (found - last[1]).abs();
            assert!(
                error <= 1e-3 * last[1].abs().max(1.0),
                "{pairs}: {found} {}",
                last[1]
            );
        }
    }
}

#[test]
fn volumes_and_patches_that_do_not_fit_are_refused() {
    let volume = |channels| Layout::new([32; 3], channels, DType::I16);
    let model = Onnx::open(file("conv")).unwrap();
    assert_eq!(model.outputs(&volume(2), [8; 3]).unwrap()[0].channels, 3);
    let error = model.outputs(&volume(1), [8; 3]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ModelChannels {
                expected: 2,
                actual: 1,
                ..
            }
        ),
        "{error}"
    );
    let model = Onnx::open(file("fixed")).unwrap();
    let error = model.outputs(&volume(2), [8; 3]).unwrap_err().to_string();
    assert!(error.contains("6 x 5 x 4 voxels, not [8, 8, 8]"), "{error}");
    let model = Onnx::open(file("wrong_output")).unwrap();
    let error = model.outputs(&volume(1), [8; 3]).unwrap_err().to_string();
    assert!(
        error.contains("predictions of [1, 1, 1] voxels in patches of [8, 8, 8]"),
        "{error}"
    );
    for (name, halo, scale) in [("max_pool", [0; 3], 2), ("conv_valid", [2; 3], 1)] {
        let model = Onnx::open(file(name)).unwrap();
        let outputs = model.outputs(&volume(2), [8; 3]).unwrap();
        assert_eq!((outputs[0].halo, outputs[0].scale), (halo, scale), "{name}");
    }
    let said = |halo, scale| {
        let model = Onnx::open(file("max_pool")).unwrap();
        let outputs = model
            .with_place(OutputPlace { halo, scale })
            .outputs(&volume(2), [8; 3]);
        outputs.map(|outputs| (outputs[0].halo, outputs[0].scale))
    };
    assert_eq!(said(None, Some(2)).unwrap(), ([0; 3], 2));
    assert_eq!(said(None, Some(1)).unwrap(), ([2; 3], 1));
    assert_eq!(said(Some([2; 3]), None).unwrap(), ([2; 3], 1));
    let error = said(Some([1; 3]), None).unwrap_err().to_string();
    assert!(error.contains("not a whole multiple"), "{error}");
    let (two, input) = network("unet");
    let name = two.outputs(&volume(1), input.shape()).unwrap()[1]
        .name
        .clone();
    let both = two.predict(vec![input.clone()]).unwrap();
    let second = Onnx::open(file("unet")).unwrap().only(Some(&name)).unwrap();
    assert_eq!(second.predict(vec![input]).unwrap(), both[1..]);
    let only = two.only(Some("missing")).unwrap_err().to_string();
    assert!(only.contains("the model's outputs are"), "{only}");
    // The network halves a patch, doubles it again and adds both, which odd lengths do not fit.
    let model = Onnx::open(file("unet")).unwrap();
    let error = model.outputs(&volume(1), [7; 3]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ModelRun {
                action: "prepared",
                patch: [7, 7, 7],
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.onnx");
    let whole = fs::read(file("unet")).unwrap();
    let volume = Layout::new([32; 3], 1, DType::F32);
    let mut refused = 0;
    for n in 0..200_usize {
        let mut bytes = whole.clone();
        let at = n.wrapping_mul(2_654_435_761) % bytes.len();
        if n % 4 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << (n % 8);
        }
        fs::write(&path, &bytes).unwrap();
        let opened = Onnx::open(&path);
        refused += usize::from(
            opened
                .and_then(|model| model.outputs(&volume, [8; 3]))
                .is_err(),
        );
    }
    assert!(refused >= 50, "every file that was cut short: {refused}");
}

#[test]
fn models_of_files_and_built_in_ones_can_be_averaged() {
    let names = ["unet", "threshold:0.3,0.6"];
    let models: [Arc<dyn Model>; 2] = [
        Arc::new(Onnx::open(file(names[0])).unwrap()),
        builtin_model(names[1]).unwrap(),
    ];
    let (_, input) = network("unet");
    let each = models
        .each_ref()
        .map(|m| m.predict(vec![input.clone()]).unwrap().remove(0).remove(0));
    let both = names.map(str::to_owned).into_iter().zip(models).collect();
    let mean = crate::inference::Ensemble::new(both).unwrap();
    let mean = mean.predict(vec![input]).unwrap().remove(0).remove(0);
    let [a, b] = each
        .each_ref()
        .map(|patch| patch.as_slice::<f32>().unwrap());
    for (n, mean) in mean.as_slice::<f32>().unwrap().iter().enumerate() {
        assert_eq!(*mean, f32::midpoint(a[n], b[n]));
    }
}
