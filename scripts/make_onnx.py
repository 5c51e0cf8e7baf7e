#!/usr/bin/env python3
"""Creates the networks of tests/data/onnx and their outputs, computed by ONNX Runtime.

    python3 -m pip install numpy onnx onnxruntime
    python3 scripts/make_onnx.py

For each network NAME there are NAME.onnx, its input NAME.in.npy and its outputs NAME.out0.npy,
NAME.out1.npy, ..., each (c, z, y, x) without the batch axis. Weights and inputs come from fixed seeds.
"""

import pathlib
import zlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "onnx"
FREE = ["n", None, "z", "y", "x"]  # the batch and the spatial axes may be anything


class Net:
    """A chain of nodes with seeded random weights."""

    def __init__(self, name):
        self.name = name
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.nodes, self.weights = [], []

    def const(self, values, dtype=np.float32):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape, scale=1.0):
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.const(self.random.normal(0, scale / np.sqrt(fan_in), shape))

    def add(self, op, *inputs, outputs=1, **attributes):
        names = [f"{op.lower()}{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, cin, cout, kernel=3, stride=1, **attributes):
        attributes.setdefault("pads", [kernel // 2] * 6)
        group = attributes.get("group", 1)
        w = self.weight(cout, cin // group, kernel, kernel, kernel)
        b = self.const(self.random.normal(0, 0.1, cout))
        return self.add("Conv", x, w, b, kernel_shape=[kernel] * 3, strides=[stride] * 3, **attributes)

    def up(self, x, cin, cout, kernel=2, **attributes):
        w = self.const(self.random.normal(0, 1 / np.sqrt(cin), (cin, cout, kernel, kernel, kernel)))
        b = self.const(self.random.normal(0, 0.1, cout))
        return self.add("ConvTranspose", x, w, b, kernel_shape=[kernel] * 3, strides=[2] * 3, **attributes)

    def instance_norm(self, x, channels):
        scale = self.const(1 + self.random.normal(0, 0.2, channels))
        shift = self.const(self.random.normal(0, 0.2, channels))
        return self.add("InstanceNormalization", x, scale, shift, epsilon=1e-5)

    def block(self, x, cin, cout, stride=1):
        x = self.conv(x, cin, cout, stride=stride)
        return self.add("LeakyRelu", self.instance_norm(x, cout), alpha=0.01)

    def model(self, outputs, dims, opset=18, types=None, input_type=TensorProto.FLOAT, rank=5):
        types = types or [TensorProto.FLOAT] * len(outputs)
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info("volume", input_type, dims)],
            [helper.make_tensor_value_info(o, t, [None] * rank) for o, t in zip(outputs, types)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def save(self, outputs, shape, dims=FREE, values=None, check=True, **options):
        """Writes the network, an input of `shape` (c, z, y, x), and the outputs."""
        outputs = [outputs] if isinstance(outputs, str) else outputs
        dims = [shape[0] if d is None else d for d in dims]
        model = self.model(outputs, dims, **options)
        onnx.save(model, FOLDER / f"{self.name}.onnx")
        if not check:
            return
        if values is None:
            values = self.random.normal(0, 1, shape).astype(np.float32)
        np.save(FOLDER / f"{self.name}.in.npy", values)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        batch = np.repeat(values[None], dims[0] if isinstance(dims[0], int) else 1, axis=0)
        for k, out in enumerate(session.run(None, {"volume": batch})):
            out = out[:, None] if out.ndim == 4 else out
            np.save(FOLDER / f"{self.name}.out{k}.npy", out[0])


def operators():
    small = (2, 6, 5, 4)
    even = (2, 6, 8, 4)

    net = Net("conv")
    net.save(net.conv("volume", 2, 3), small)
    net = Net("conv_valid")
    x = net.conv("volume", 2, 3, pads=[0] * 6)
    net.save(net.conv(x, 3, 2, pads=[0] * 6), (2, 8, 7, 6))
    net = Net("conv_stride")
    net.save(net.conv("volume", 2, 3, stride=2), even)
    net = Net("conv_dilated_grouped")
    net.save(net.conv("volume", 2, 4, dilations=[2] * 3, pads=[2] * 6, group=2), small)
    net = Net("conv_transpose")
    x = net.conv("volume", 2, 4, stride=2)
    net.save(net.up(x, 4, 2), even)
    net = Net("conv_transpose_padded")
    x = net.conv("volume", 2, 4, stride=2)
    net.save(net.up(x, 4, 2, kernel=3, pads=[1] * 6, output_padding=[1] * 3), even)

    net = Net("instance_norm")
    net.save(net.instance_norm("volume", 2), small)
    net = Net("batch_norm")
    numbers = [net.const(net.random.uniform(0.5, 1.5, 2)) for _ in range(4)]
    net.save(net.add("BatchNormalization", "volume", *numbers), small)
    net = Net("group_norm")  # as PyTorch exports it: per group by an instance norm of a reshaped volume
    x = net.add("Reshape", "volume", net.const([0, 2, -1], np.int64))
    x = net.add("InstanceNormalization", x, net.const([1, 1]), net.const([0, 0]), epsilon=1e-5)
    x = net.add("Reshape", x, net.add("Shape", "volume"))
    x = net.add("Mul", x, net.const(net.random.uniform(0.5, 1.5, (4, 1, 1, 1))))
    net.save(net.add("Add", x, net.const(net.random.normal(0, 0.2, (4, 1, 1, 1)))), (4, 5, 4, 3))
    net = Net("group_norm_21")
    numbers = [net.const(net.random.uniform(0.5, 1.5, 4)) for _ in range(2)]
    net.save(net.add("GroupNormalization", "volume", *numbers, num_groups=2), (4, 5, 4, 3), opset=21)

    net = Net("leaky_relu")
    net.save(net.add("LeakyRelu", "volume", alpha=0.2), small)
    net = Net("prelu")
    net.save(net.add("PRelu", "volume", net.const(net.random.uniform(0, 0.5, (2, 1, 1, 1)))), small)
    net = Net("softmax")
    net.save(net.add("Softmax", "volume", axis=1), small)
    net = Net("sigmoid")
    net.save(net.add("Sigmoid", "volume"), small)
    net = Net("concat")
    net.save(net.add("Concat", "volume", net.add("Sigmoid", "volume"), axis=1), small)
    net = Net("pad_edge")
    x = net.add("Pad", "volume", net.const([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], np.int64), mode="edge")
    net.save(net.conv(x, 2, 1, pads=[0] * 6), small)

    net = Net("max_pool")
    net.save(net.add("MaxPool", "volume", kernel_shape=[2] * 3, strides=[2] * 3), even)
    net = Net("average_pool")
    net.save(net.add("AveragePool", "volume", kernel_shape=[2] * 3, strides=[2] * 3), even)
    scales = [1.0, 1.0, 2.0, 2.0, 2.0]
    resizes = {
        "resize_nearest": dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        "resize_linear": dict(mode="linear", coordinate_transformation_mode="half_pixel"),
        "resize_linear_corners": dict(mode="linear", coordinate_transformation_mode="align_corners"),
    }
    for name, attributes in resizes.items():
        net = Net(name)
        x = net.add("MaxPool", "volume", kernel_shape=[2] * 3, strides=[2] * 3)
        net.save(net.add("Resize", x, "", net.const(scales), **attributes), even)
    net = Net("resize_like")  # to the size of another tensor, as PyTorch exports interpolate(size=...)
    x = net.add("MaxPool", "volume", kernel_shape=[2] * 3, strides=[2] * 3)
    x = net.add("Conv", x, net.weight(3, 2, 1, 1, 1), kernel_shape=[1] * 3)
    numbers = [net.const(v, np.int64) for v in ([2], [5], [0])]
    size = net.add("Slice", net.add("Shape", "volume"), numbers[0], numbers[1], numbers[2])
    size = net.add("Concat", net.const([1, 3], np.int64), size, axis=0)
    net.save(net.add("Resize", x, "", "", size, mode="linear"), even)
    # Older operator sets; three is where rounding and cutting off differ.
    thirds = [1.0, 1.0, 3.0, 2.0, 2.0]
    for name, op, roi, opset in [
        ("upsample_9", "Upsample", [], 9),
        ("resize_10", "Resize", [], 10),
        ("resize_11", "Resize", [[]], 11),
    ]:
        net = Net(name)
        x = net.add("MaxPool", "volume", kernel_shape=[3, 2, 2], strides=[3, 2, 2])
        roi = [net.const(values) for values in roi]
        net.save(net.add(op, x, *roi, net.const(thirds), mode="nearest"), even, opset=opset)

    net = Net("argmax")  # integers, and no channel axis
    x = net.add("ArgMax", net.conv("volume", 2, 4), axis=1, keepdims=0)
    net.save(x, small, types=[TensorProto.INT64], rank=4)
    net = Net("cast_int64")  # labels by a threshold, with and without a channel axis
    x = net.add("Cast", net.add("Greater", net.conv("volume", 2, 3), net.const(0)), to=TensorProto.INT64)
    y = net.add("Cast", net.add("ReduceMax", "volume", axes=[1], keepdims=1), to=TensorProto.INT64)
    y = net.add("Transpose", y, perm=[0, 1, 2, 3, 4])
    z = net.add("Add", y, net.const(3, np.int64))  # an output by way of arithmetic
    net.save([x, y, z], small, opset=13, types=[TensorProto.INT64] * 3, values=net.random.normal(0, 9, small).astype("f4"))
    net = Net("types")
    kinds = ["BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FLOAT16", "FLOAT", "DOUBLE"]
    kinds = [getattr(TensorProto, kind) for kind in kinds]
    x = net.add("Abs", net.conv("volume", 2, 3))
    net.save([net.add("Cast", x, to=kind) for kind in kinds], small, types=kinds)
    net = Net("double")
    values = net.random.normal(0, 1, small)
    x = net.add("Add", net.add("Mul", "volume", "volume"), net.const(1 + 2.0**-40, np.float64))
    net.save(x, small, values=values, types=[TensorProto.DOUBLE], input_type=TensorProto.DOUBLE)
    net = Net("half")
    x = net.add("Cast", net.conv(net.add("Cast", "volume", to=TensorProto.FLOAT), 2, 3), to=TensorProto.FLOAT16)
    values = net.random.normal(0, 1, small).astype(np.float16)
    net.save(x, small, values=values, types=[TensorProto.FLOAT16], input_type=TensorProto.FLOAT16)
    net = Net("fixed")
    net.save(net.conv("volume", 2, 3), small, dims=[1, 2, 6, 5, 4])
    net = Net("fixed_batch_of_3")
    net.save(net.conv("volume", 2, 3), small, dims=[3, 2, "z", "y", "x"])


def networks():
    net = Net("unet")
    high = net.block(net.block("volume", 1, 4), 4, 4)
    low = net.block(net.block(high, 4, 8, stride=2), 8, 8)
    x = net.add("Concat", net.up(low, 8, 4), high, axis=1)
    x = net.conv(net.block(x, 8, 4), 4, 3, kernel=1)
    coarse = net.conv(low, 8, 3, kernel=1)
    net.save([net.add("Softmax", x, axis=1), coarse], (1, 8, 8, 12))

    # The mean of 27 neighbors, then the nearness to each tissue: 2 m h - m^2 over 10^5.
    net = Net("tissue")
    x = net.add("Pad", "volume", net.const([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], np.int64), mode="edge")
    x = net.add("Conv", x, net.const(np.full((1, 1, 3, 3, 3), 1 / 27)), kernel_shape=[3] * 3)
    means = np.array([-1000.0, -700.0, 40.0, 700.0])
    w, b = 2 * means / 1e5, -(means**2) / 1e5
    x = net.add("Conv", x, net.const(w.reshape(4, 1, 1, 1, 1)), net.const(b), kernel_shape=[1] * 3)
    values = net.random.uniform(-1024, 1500, (1, 6, 5, 4)).astype(np.float32)
    net.save(x, (1, 6, 5, 4), values=values)


def wrong():
    """Creates networks that cannot be run on a volume."""
    net = Net("wrong_rank")
    net.save(net.add("Sigmoid", "volume"), (1,), dims=["n", 1, "y", "x"], rank=4, check=False)
    net = Net("wrong_operator")
    x = net.add("Sigmoid", "volume")
    net.nodes.append(helper.make_node("Frobnicate", [x], ["out"], name="node_7", domain="example.org"))
    graph = helper.make_graph(
        net.nodes,
        net.name,
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["n", 1, "z", "y", "x"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 5)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("example.org", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), FOLDER / f"{net.name}.onnx")
    dims = ["n", 1, "z", "y", "x"]
    for name, domain, opset in [("wrong_domain", "example.org", 18), ("wrong_new", "", 99), ("wrong_old", "", 6)]:
        value = [helper.make_tensor_value_info(v, TensorProto.FLOAT, dims) for v in ("volume", "out")]
        node = helper.make_node("Sigmoid", ["volume"], ["out"], name="node_7", domain=domain)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("example.org", 1)]
        graph = helper.make_graph([node], name, [value[0]], [value[1]])
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), FOLDER / f"{name}.onnx")
    volume = helper.make_tensor_value_info("volume", TensorProto.FLOAT, dims)
    short = helper.make_tensor_value_info("volume", TensorProto.INT16, dims)
    second = helper.make_tensor_value_info("second", TensorProto.FLOAT, dims)
    shapeless = helper.make_tensor_value_info("volume", TensorProto.FLOAT, None)
    brain = helper.make_tensor_value_info("volume", TensorProto.BFLOAT16, dims)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, dims)
    sigmoid = helper.make_node("Sigmoid", ["volume"], ["out"])
    relu = helper.make_node("Relu", ["volume"], ["out"])
    outside = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    gone = onnx.TensorProto()
    gone.CopyFrom(outside)
    outside.external_data.add(key="location", value="../../../Cargo.toml")
    gone.external_data.add(key="location", value="gone.bin")
    add = helper.make_node("Add", ["volume", "w"], ["out"])
    for name, nodes, inputs, outputs, weights in [
        ("wrong_output_twice", [sigmoid], [volume], [out, out], []),
        ("wrong_value_twice", [sigmoid, relu], [volume], [out], []),
        ("wrong_nothing", [helper.make_node("Relu", ["volume"], ["other"])], [volume], [out], []),
        ("wrong_type", [sigmoid], [short], [out], []),
        ("wrong_bfloat", [sigmoid], [brain], [out], []),
        ("wrong_shapeless", [sigmoid], [shapeless], [out], []),
        ("wrong_inputs", [helper.make_node("Add", ["volume", "second"], ["out"])], [volume, second], [out], []),
        ("wrong_outside", [add], [volume], [out], [outside]),
        ("wrong_gone", [add], [volume], [out], [gone]),
    ]:
        graph = helper.make_graph(nodes, name, inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString())
    net = Net("wrong_output")  # one number for each channel
    net.save(net.add("GlobalAveragePool", "volume"), (1,), dims=["n", 1, "z", "y", "x"], check=False)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    operators()
    networks()
    wrong()
    print(sum(path.stat().st_size for path in FOLDER.iterdir()) / 1000, "KB in", FOLDER)
