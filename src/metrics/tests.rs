use super::record::tests::sample;
use super::rollup::Cell;
#[test]
fn write_samples() {
    std::fs::write("tests/data/metrics/record-v1.bin", sample(7).encode()).unwrap();
    let mut c = Cell::default(); c.add(&sample(7));
    std::fs::write("tests/data/metrics/cell-v1.bin", c.encode()).unwrap();
}
