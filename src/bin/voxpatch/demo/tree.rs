//! Trees of vessels and airways in the phantom's lungs, and a few nodules.

use super::shape::{Filling, P3, Tube};

/// All tubes, those that are painted over others last.
pub(super) fn tubes() -> Vec<Tube> {
    let mut tubes = Vec::new();
    for (seed, side) in [(1, -1.0_f32), (2, 1.0)] {
        // Arteries and veins leave the hilum side by side.
        for (n, y) in [(0, 2.0), (1, 16.0)] {
            let mut tree = Tree::new(seed * 8 + n, Filling::Solid(55.0), 10, &mut tubes);
            let hilum = [side * 24.0, y, 165.0];
            for (up, back) in [
                (1.4, 0.1),
                (0.5, -0.5),
                (0.1, 0.5),
                (-0.6, -0.3),
                (-1.2, 0.5),
            ] {
                tree.grow(hilum, unit([side * 0.8, back, up]), 24.0, 4.4, 0);
            }
        }
    }
    nodules(&mut tubes);
    let carina = [0.0, 18.0, 200.0];
    tubes.push(airway([0.0, 4.0, 330.0], carina, 9.0));
    for (seed, side) in [(3, -1.0_f32), (4, 1.0)] {
        let hilum = [side * 30.0, 14.0, 172.0];
        tubes.push(airway(carina, hilum, 6.2));
        let mut tree = Tree::new(seed * 8, Filling::Airway, 6, &mut tubes);
        for up in [1.0, 0.0, -1.0] {
            tree.grow(hilum, unit([side * 0.9, 0.1, up]), 22.0, 3.4, 0);
        }
    }
    tubes
}

fn airway(from: P3, to: P3, radius: f32) -> Tube {
    Tube {
        from,
        to,
        radius,
        filling: Filling::Airway,
    }
}

/// Nodules of 3 to 11 mm here and there.
fn nodules(tubes: &mut Vec<Tube>) {
    let mut random = Random(77);
    for _ in 0..14 {
        let side = if random.next() < 0.5 { -62.0 } else { 62.0 };
        let at = [
            side + (random.next() - 0.5) * 60.0,
            (random.next() - 0.5) * 90.0,
            130.0 + random.next() * 110.0,
        ];
        tubes.push(Tube {
            from: at,
            to: at,
            radius: 1.5 + random.next() * 4.0,
            filling: Filling::Solid(30.0),
        });
    }
}

/// Branches in two again and again.
struct Tree<'a> {
    random: Random,
    filling: Filling,
    generations: u32,
    tubes: &'a mut Vec<Tube>,
}

impl<'a> Tree<'a> {
    fn new(seed: u64, filling: Filling, generations: u32, tubes: &'a mut Vec<Tube>) -> Self {
        Self {
            random: Random(seed),
            filling,
            generations,
            tubes,
        }
    }

    fn grow(&mut self, from: P3, direction: P3, length: f32, radius: f32, generation: u32) {
        let to: P3 = std::array::from_fn(|a| from[a] + direction[a] * length);
        self.tubes.push(Tube {
            from,
            to,
            radius,
            filling: self.filling,
        });
        if generation + 1 >= self.generations {
            return;
        }
        let sideways = unit(cross(direction, self.anywhere()));
        for sign in [1.0, -1.0] {
            let bend = sign * (0.3 + 0.5 * self.random.next());
            let child = unit(std::array::from_fn(|a| direction[a] + sideways[a] * bend));
            let shrink = 0.72 + 0.16 * self.random.next();
            self.grow(to, child, length * shrink, radius * 0.8, generation + 1);
        }
    }

    fn anywhere(&mut self) -> P3 {
        std::array::from_fn(|_| self.random.next() - 0.5)
    }
}

/// Numbers in 0..1 from a counter, the same on every machine.
struct Random(u64);

impl Random {
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit into an f32")]
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((hash ^ (hash >> 31)) >> 40) as f32 / (1_u32 << 24) as f32
    }
}

fn cross(a: P3, b: P3) -> P3 {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

fn unit(v: P3) -> P3 {
    let length = (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt().max(1e-6);
    v.map(|n| n / length)
}
