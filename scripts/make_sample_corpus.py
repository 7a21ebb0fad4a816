"""Write the sample corpus of the package: every 30th crystal of MP-20's validation split, in plain columns.

python scripts/make_sample_corpus.py --data ../shared/data/mp_20/val.parquet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mat2seq_hf.corpora.feature import Crystal
from mat2seq_hf.corpora.sources import read_rows

OUTPUT = Path(__file__).resolve().parent.parent / "mat2seq_hf" / "corpora" / "sample" / "mp_20_sample.parquet"
PROPERTIES = ("formation_energy_per_atom", "band_gap", "e_above_hull")
STEP = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="validation split of MP-20")
    args = parser.parse_args()
    rows = []
    for row in list(read_rows([args.data]))[::STEP]:
        properties = json.loads(row.properties)
        values = {name: properties.get(name) for name in PROPERTIES}
        rows.append({"id": row.id, "structure": Crystal().encode_example(row.text), **values})
    schema = pa.schema([("id", pa.string()), ("structure", Crystal.pa_type), *((p, pa.float64()) for p in PROPERTIES)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), OUTPUT, compression="zstd", compression_level=19)
    print(f"{len(rows)} crystals, {OUTPUT.stat().st_size / 1000:.0f} kB: {OUTPUT.name}")


if __name__ == "__main__":
    main()
