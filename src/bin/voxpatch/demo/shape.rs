//! Soft shapes: ellipses and tubes, with edges a millimeter wide.

/// A place or a direction, x, y, z.
pub(super) type P3 = [f32; 3];

/// How far inside an edge a point is becomes how much of its voxel is inside.
pub(super) fn cover(inside: f32) -> f32 {
    (inside + 0.5).clamp(0.0, 1.0)
}

/// `share` of `over` on `under`.
pub(super) fn mix(under: f32, over: f32, share: f32) -> f32 {
    under + (over - under) * share
}

/// About how far inside an ellipse a point is, in mm; negative outside.
pub(super) fn ellipse([x, y]: [f32; 2], [a, b]: [f32; 2]) -> f32 {
    (1.0 - (x * x / (a * a) + y * y / (b * b)).sqrt()) * a.min(b)
}

/// How far inside the rib cage.
pub(super) fn cage([x, y]: [f32; 2]) -> f32 {
    ellipse([x, y + 2.0], [122.0, 80.0])
}

/// What a tube is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Filling {
    /// Blood or a nodule: only seen in the lungs.
    Solid(f32),
    /// Air in a wall.
    Airway,
}

/// A piece of a vessel, an airway or, with both ends in one place, a nodule.
#[derive(Clone, Debug)]
pub(super) struct Tube {
    pub(super) from: P3,
    pub(super) to: P3,
    pub(super) radius: f32,
    pub(super) filling: Filling,
}

impl Tube {
    /// A box that holds all that the tube changes.
    pub(super) fn bounds(&self) -> (P3, P3) {
        let reach = self.radius * 1.35 + 1.5;
        let low = std::array::from_fn(|a| self.from[a].min(self.to[a]) - reach);
        let high = std::array::from_fn(|a| self.from[a].max(self.to[a]) + reach);
        (low, high)
    }

    /// The tissue at `at`, where without the tube it is `under`.
    pub(super) fn paint(&self, at: P3, under: f32) -> f32 {
        let along: P3 = std::array::from_fn(|a| self.to[a] - self.from[a]);
        let to: P3 = std::array::from_fn(|a| at[a] - self.from[a]);
        let dot = |a: P3, b: P3| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
        let part = (dot(to, along) / dot(along, along).max(1e-6)).clamp(0.0, 1.0);
        let off: P3 = std::array::from_fn(|a| to[a] - along[a] * part);
        let inside = self.radius - dot(off, off).sqrt();
        let in_lung = under < -300.0 && under > -970.0 && cage([at[0], at[1]]) > 4.0;
        match self.filling {
            Filling::Solid(value) if in_lung => mix(under, under.max(value), cover(inside)),
            Filling::Airway if in_lung || self.radius > 3.0 => {
                let wall = mix(under, under.max(20.0), cover(inside + self.radius * 0.25));
                mix(wall, -995.0, cover(inside))
            }
            _ => under,
        }
    }
}
