//! The public interface: predictors, plans that own their volume, and functions as models.

use ndarray::ArrayView4;

use super::*;
use crate::normalize::Normalize;
use crate::volume::{Durability, OutputPart};

fn predictor(model: Arc<dyn Model>) -> Predictor {
    let options = InferenceOptions::new([16; 3])
        .with_overlap([8; 3])
        .with_threads(2);
    Predictor::new(source(), model, options)
}

fn stored(path: &Path, shard: u64) -> OutputTarget {
    let mut store = options();
    (store.chunk, store.shard) = ([8; 3], Some([shard; 3]));
    OutputTarget::new(path)
        .with_store(store)
        .with_defaults(vec![StoreOption::Shard])
}

#[test]
fn a_function_of_arrays_predicts_every_voxel_in_the_type_of_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let double = |values: ArrayView4<'_, f32>| values.mapv(|value| 2.0 * value);
    for dtype in [DType::F32, DType::F64] {
        let model = Arc::new(FnModel::new(OutputSpec::new(1, dtype), double));
        let mut target = stored(&path, 16).with_blend(Blend::Crop);
        target.store.overwrite = true;
        let plan = predictor(model).plan(&[target]).unwrap();
        assert!(plan.run(&silent).unwrap().whole);
        let (out, whole) = (open(&path).unwrap(), Region::whole(SHAPE));
        assert_eq!(out.layout().dtype, dtype);
        let found = out.read_as(whole, DType::F64).unwrap();
        let expected = source().read_as(whole, DType::F64).unwrap();
        let pairs = found.as_slice::<f64>().unwrap().iter();
        assert!(
            pairs
                .zip(expected.as_slice::<f64>().unwrap())
                .all(|(f, e)| *f == 2.0 * e)
        );
    }
}

#[test]
fn smaller_shards_are_planned_only_where_memory_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let target =
        stored(&dir.path().join("out.zarr"), 48).with_smaller_shards(vec![[16; 3], [8; 3]]);
    let shard = |memory: u64| {
        let options = InferenceOptions::new([16; 3])
            .with_threads(1)
            .with_memory(memory);
        let predictor = Predictor::new(source(), builtin_model("identity").unwrap(), options);
        let plan = predictor.plan(std::slice::from_ref(&target)).ok()?;
        assert!(plan.peak_bytes() <= memory);
        Some((plan.passes(), plan.outputs()[0].layout.write_chunk?[3]))
    };
    assert_eq!(shard(64 << 20), Some((1, 48)));
    let tight = (0..400).filter_map(|n| shard(n << 14)).collect::<Vec<_>>();
    assert!(tight.contains(&(1, 16)), "{tight:?}");
}

#[test]
fn a_part_that_follows_another_process_keeps_its_normalization() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.zarr");
    let ct = Normalize::Window {
        low: 0.0,
        high: 200.0,
    };
    let plan = |shard: u64, part: u32| {
        let plan = predictor(builtin_model("gaussian:1").unwrap()).plan(&[stored(&path, shard)]);
        let plan = plan.unwrap().with_normalize(ct.clone(), &silent).unwrap();
        let part = OutputPart::new(part, 2).unwrap();
        plan.with_part(part, Durability::None).unwrap()
    };
    // This plan is made before the other part begins the output with smaller shards.
    let early = plan(16, 0);
    assert!(!plan(8, 1).run(&silent).unwrap().whole);
    assert!(early.run(&silent).unwrap().whole);
    assert_eq!(
        open(&path).unwrap().layout().write_chunk,
        Some([1, 8, 8, 8])
    );
}
