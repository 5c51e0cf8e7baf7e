//! What lies where in the phantom's chest: organs as ellipsoids, vessels and airways as trees.
//!
//! x is to the patient's left, y to the back, z up, in mm. Edges are a millimeter soft, as a
//! scanner's are.

use super::shape::{P3, Tube, cage, cover, ellipse, mix};

/// Air, and the tissues by their usual HU.
const AIR: f32 = -1000.0;
const FAT: f32 = -100.0;
const MUSCLE: f32 = 52.0;
const BLOOD: f32 = 170.0;
const MARROW: f32 = 190.0;
const CORTEX: f32 = 650.0;

/// The same for an ellipsoid.
fn ellipsoid(at: P3, half: P3) -> f32 {
    let squares = at.iter().zip(half).map(|(x, a)| x * x / (a * a));
    let narrowest = half[0].min(half[1]).min(half[2]);
    (1.0 - squares.sum::<f32>().sqrt()) * narrowest
}

/// Bone: a shell of cortex around marrow.
fn bone(under: f32, inside: f32, shell: f32) -> f32 {
    let cortex = mix(under, CORTEX, cover(inside));
    mix(cortex, MARROW, cover(inside - shell))
}

/// The distance to the nearest multiple of `period`.
fn from_multiple(z: f32, period: f32) -> f32 {
    (z - (z / period).round() * period).abs()
}

/// The chest: tissue by formula, and a list of tubes over it.
#[derive(Debug)]
pub(super) struct Anatomy {
    tubes: Vec<Tube>,
}

impl Anatomy {
    pub(super) fn new() -> Self {
        Self {
            tubes: super::tree::tubes(),
        }
    }

    /// What is painted over the tissue, in this order.
    pub(super) fn tubes(&self) -> &[Tube] {
        &self.tubes
    }

    /// The tissue along x at the given y and z.
    #[expect(clippy::unused_self, reason = "the chest's lines are its own")]
    pub(super) fn line(&self, y: f32, z: f32) -> Line {
        let above = ((z - 150.0) / 152.0).max(0.0);
        Line {
            y,
            z,
            lung: (1.0 - above * above).max(0.0).sqrt(),
            disc: from_multiple(z, 26.0),
        }
    }
}

/// A line of the chest along x.
#[derive(Debug)]
pub(super) struct Line {
    y: f32,
    z: f32,
    /// The lungs' width here as a part of their widest.
    lung: f32,
    /// How far the nearest disc's middle plane is.
    disc: f32,
}

impl Line {
    /// The tissue at x, in HU.
    pub(super) fn tissue(&self, x: f32) -> f32 {
        let y = self.y;
        let body = ellipse([x, y], [160.0, 112.0]);
        if body < -1.0 {
            return self.table(x);
        }
        let skin = mix(AIR, 10.0, cover(body));
        let fat = mix(skin, FAT, cover(body - 2.0));
        let wall = mix(fat, MUSCLE, cover(ellipse([x, y], [147.0, 98.0])));
        let cage = cage([x, y]);
        let inside = if cage > -1.0 {
            mix(wall, self.organs(x), cover(cage))
        } else {
            wall
        };
        let mut tissue = self.spine(x, inside);
        if (-9.0..1.0).contains(&cage) {
            tissue = self.rib(x, cage, tissue);
        }
        if y < -70.0 && self.z > 95.0 {
            tissue = bone(tissue, ellipse([x, y + 86.0], [18.0, 6.0]), 1.5);
        }
        if y > 30.0 && self.z > 140.0 {
            tissue = self.scapula(x, tissue);
        }
        tissue
    }

    /// The table below the patient.
    fn table(&self, x: f32) -> f32 {
        let top = 128.0 - x * x * 0.0006;
        let depth = self.y - top;
        let shell = 1.2 - (depth - 1.2).abs().min((depth - 19.0).abs());
        let foam = mix(AIR, -930.0, cover(depth.min(19.0 - depth)));
        mix(foam, -350.0, cover(shell))
    }

    /// All that lies inside the rib cage.
    fn organs(&self, x: f32) -> f32 {
        let (y, z) = (self.y, self.z);
        let below = self.abdomen(x);
        let middle = mix(
            below,
            35.0,
            cover(24.0 - x.abs() - y.max(0.0) * 0.1) * cover(z - 100.0),
        );
        let lung = self.lung(x);
        let air = -868.0 + y * 0.7 + z * 0.05;
        let mut tissue = mix(middle, air, cover(lung));
        let heart = ellipsoid([x - 20.0, y + 20.0, z - 118.0], [54.0, 45.0, 52.0]);
        if heart > -1.0 {
            tissue = mix(tissue, FAT, cover(heart));
            tissue = mix(tissue, 60.0, cover(heart - 3.0));
            let left = ellipsoid([x - 36.0, y + 12.0, z - 112.0], [22.0, 24.0, 30.0]);
            let right = ellipsoid([x - 2.0, y + 36.0, z - 116.0], [30.0, 17.0, 32.0]);
            let atria = ellipsoid([x - 4.0, y - 4.0, z - 140.0], [34.0, 14.0, 18.0]);
            tissue = mix(tissue, BLOOD, cover(left.max(right).max(atria)));
        }
        self.great_vessels(x, tissue)
    }

    /// How far inside a lung: an ellipse that narrows upwards, above the diaphragm.
    fn lung(&self, x: f32) -> f32 {
        let side = 62.0_f32.copysign(x);
        let (dx, dy) = (x - side, self.y - 2.0);
        let outline = ellipse([dx, dy], [51.0 * self.lung + 0.1, 70.0 * self.lung + 0.1]);
        let top = if x < 0.0 { 108.0 } else { 94.0 };
        let dome = top - 62.0 * ((dx / 51.0).powi(2) + 0.7 * (dy / 70.0).powi(2));
        outline.min((self.z - dome) * 0.6)
    }

    /// Liver on the right, stomach and spleen on the left, fat between.
    fn abdomen(&self, x: f32) -> f32 {
        let (y, z) = (self.y, self.z);
        let liver = ellipsoid([x + 48.0, y, z - 40.0], [82.0, 74.0, 68.0]);
        let spleen = ellipsoid([x - 85.0, y - 32.0, z - 35.0], [28.0, 36.0, 46.0]);
        let stomach = ellipsoid([x - 58.0, y + 22.0, z - 38.0], [42.0, 36.0, 42.0]);
        let mut tissue = mix(FAT, 62.0, cover(liver));
        tissue = mix(tissue, 52.0, cover(spleen));
        tissue = mix(tissue, 25.0, cover(stomach));
        // Gas gathers in front.
        mix(tissue, -990.0, cover((stomach - 4.0).min(-34.0 - y)))
    }

    fn great_vessels(&self, x: f32, under: f32) -> f32 {
        let (y, z) = (self.y, self.z);
        let vertical = |cx: f32, cy: f32, radius: f32| radius - (x - cx).hypot(y - cy);
        let mut inside = vertical(22.0, 40.0, 12.0).min(212.0 - z);
        inside = inside.max(vertical(-8.0, -14.0, 15.0).min(212.0 - z).min(z - 150.0));
        if z > 205.0 {
            // The arch: half a ring over the line from one to the other.
            let (dx, dy) = (x - 7.0, y - 13.0);
            let along = dx * 0.485 + dy * 0.874;
            let across = dx * 0.874 - dy * 0.485;
            let ring = along.hypot(z - 210.0) - 31.0;
            inside = inside.max(12.5 - ring.hypot(across));
        }
        inside = inside.max(vertical(-29.0, -8.0, 9.0).min(z - 150.0));
        let wall = mix(under, 30.0, cover(inside + 1.5));
        mix(wall, BLOOD, cover(inside))
    }

    fn spine(&self, x: f32, under: f32) -> f32 {
        let y = self.y;
        if y < 40.0 || x.abs() > 45.0 {
            return under;
        }
        let vertebra = ellipse([x, y - 62.0], [19.0, 16.0]);
        let disc = mix(under, 95.0, cover(vertebra));
        let body = bone(under, vertebra.min((self.disc - 3.0) * 1.5), 1.6);
        let mut tissue = mix(body, disc, cover(3.0 - self.disc));
        let arch = ellipse([x, y - 86.0], [16.0, 14.0]);
        let process = (4.0 - x.abs()).min(112.0 - y).min(y - 92.0);
        let wings = (38.0 - x.abs()).min(4.5 - (y - 86.0 - x.abs() * 0.15).abs());
        let level = 9.0 - from_multiple(self.z - 11.0, 26.0);
        tissue = bone(tissue, arch.max(process.max(wings).min(level)), 1.6);
        mix(tissue, 15.0, cover(ellipse([x, y - 86.0], [10.0, 8.5])))
    }

    /// Ribs lie in the cage's wall and fall towards the front; there they are cartilage.
    fn rib(&self, x: f32, cage: f32, under: f32) -> f32 {
        let along = from_multiple(self.z - 0.45 * self.y, 27.0) / 6.0;
        let through = (cage + 4.0) / 4.0;
        let inside = (1.0 - along.hypot(through)) * 4.0;
        if self.y < -58.0 {
            return mix(under, 110.0, cover(inside) * cover(x.abs() - 10.0));
        }
        bone(under, inside, 1.3)
    }

    fn scapula(&self, x: f32, under: f32) -> f32 {
        // From near the spine outwards and forwards, thin in the middle.
        let (ax, ay) = (x.abs() - 104.0, self.y - 66.0);
        let along = ax * 0.82 - ay * 0.57;
        let across = ax * 0.57 + ay * 0.82;
        let thick = 2.6 + (along / 26.0).powi(2) * 2.0;
        bone(
            under,
            (thick - across.abs())
                .min(30.0 - along.abs())
                .min(self.z - 140.0),
            1.2,
        )
    }
}
