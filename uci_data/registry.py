"""The registry: what each data set is, where it comes from, and how to know it when it arrives."""

from __future__ import annotations

from . import parsers
from .entry import DatasetInfo
from .errors import unknown_dataset

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
NO_LICENCE = "no licence statement found"

BOSTON = DatasetInfo(
    name="boston",
    rows=506,
    feature_names=(
        "CRIM",
        "ZN",
        "INDUS",
        "CHAS",
        "NOX",
        "RM",
        "AGE",
        "DIS",
        "RAD",
        "TAX",
        "PTRATIO",
        "B",
        "LSTAT",
    ),
    target_name="MEDV (1000 USD)",
    url=f"{UCI}/housing/housing.data",
    download_sha256="baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a",
    array_sha256="832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7",
    parse=parsers.boston,
    package_file=("mlxtend", "data/data/boston_housing.csv"),
    licence=NO_LICENCE,
)

CONCRETE = DatasetInfo(
    name="concrete",
    rows=1030,
    feature_names=(
        "cement (kg/m^3)",
        "blast furnace slag (kg/m^3)",
        "fly ash (kg/m^3)",
        "water (kg/m^3)",
        "superplasticizer (kg/m^3)",
        "coarse aggregate (kg/m^3)",
        "fine aggregate (kg/m^3)",
        "age (days)",
    ),
    target_name="compressive strength (MPa)",
    url=f"{UCI}/concrete/compressive/Concrete_Data.xls",
    download_sha256="710076c66b9ca3f8050e7942f3dcbdbe04013534daeb0077ffd3079a52d8e0c4",
    array_sha256="d0e2d2f0f50277624d7d00b98c4e8b66465e8d5f2f51738500552b8b10a4689b",
    parse=parsers.concrete,
    needs=("xlrd",),
    doi="10.24432/C5PK67",
)

ENERGY = DatasetInfo(
    name="energy",
    rows=768,
    feature_names=(
        "relative compactness",
        "surface area (m^2)",
        "wall area (m^2)",
        "roof area (m^2)",
        "overall height (m)",
        "orientation",
        "glazing area",
        "glazing area distribution",
    ),
    target_name="heating load (kWh/m^2)",
    url=f"{UCI}/00242/ENB2012_data.xlsx",
    download_sha256="0089fcffc1415e41e2ff63730cca5280efe54fc43d722dfde1b0aaa808e35dc4",
    array_sha256="3563209cb65c108b72e6ee45f56f12e53c3f346f10b6b30a79ec5b7c0a0a1dd9",
    parse=parsers.energy,
    needs=("openpyxl",),
    doi="10.24432/C51307",
)

KIN8NM = DatasetInfo(
    name="kin8nm",
    rows=8192,
    feature_names=tuple(f"theta{joint} (rad)" for joint in range(1, 9)),
    target_name="distance of the arm's end from a target",
    url="https://www.openml.org/data/get_csv/3626/dataset_2175_kin8nm.arff",
    download_sha256="7b9bf0301ac936d88122557a151e1ba8f1ebc278fcf46d9f3c6d462debdbc8ad",
    array_sha256="7fad37438fc1228ed099177766b084fb5577bf7457d7a6460f8d0389b21681ab",
    parse=parsers.kin8nm,
    licence=NO_LICENCE,
)

NAVAL = DatasetInfo(
    name="naval",
    rows=11934,
    feature_names=(
        "lever position",
        "ship speed (knots)",
        "gas turbine shaft torque (kN m)",
        "gas turbine rate of revolutions (rpm)",
        "gas generator rate of revolutions (rpm)",
        "starboard propeller torque (kN)",
        "port propeller torque (kN)",
        "HP turbine exit temperature (C)",
        "compressor inlet air temperature (C)",
        "compressor outlet air temperature (C)",
        "HP turbine exit pressure (bar)",
        "compressor inlet air pressure (bar)",
        "compressor outlet air pressure (bar)",
        "exhaust gas pressure (bar)",
        "turbine injection control (%)",
        "fuel flow (kg/s)",
    ),
    target_name="compressor decay state coefficient",
    url=f"{UCI}/00316/UCI%20CBM%20Dataset.zip",
    download_sha256="91a3815da80b5ab7e2d5b82ac82f1c2cbf89182c7a65bcdf240db1e014423cb9",
    array_sha256="b47c7849a1dd436e6fe44bbb9a1def99e35b4e9108b1936a1a00f7f32ce08584",
    parse=parsers.naval,
    doi="10.24432/C5K31K",
)

POWER = DatasetInfo(
    name="power",
    rows=9568,
    feature_names=(
        "AT ambient temperature (C)",
        "V exhaust vacuum (cm Hg)",
        "AP ambient pressure (mbar)",
        "RH relative humidity (%)",
    ),
    target_name="PE net hourly electrical energy output (MW)",
    url=f"{UCI}/00294/CCPP.zip",
    download_sha256="cc7b2a4977c0a44e8221c91d9a7e5746b3c68186cff7e5c61c70af6432b98c7a",
    array_sha256="d3c75624ea5df1256c9b8e81560e1f9381014565c5f558d3293831fa521b82e9",
    parse=parsers.power,
    needs=("openpyxl",),
    doi="10.24432/C5002N",
)

PROTEIN = DatasetInfo(
    name="protein",
    rows=45730,
    feature_names=(
        "F1 total surface area",
        "F2 non-polar exposed area",
        "F3 fractional area of exposed non-polar residue",
        "F4 fractional area of exposed non-polar part of residue",
        "F5 molecular mass weighted exposed area",
        "F6 average deviation from standard exposed area of residue",
        "F7 Euclidean distance",
        "F8 secondary structure penalty",
        "F9 spatial distribution constraints",
    ),
    target_name="RMSD of the residue (angstrom)",
    url=f"{UCI}/00265/CASP.csv",
    download_sha256="4277cfcb4e91a181746cbc654f001b57951c9e6a80f4f795fdb5c807e0848f40",
    array_sha256="19667c545027b658fa8b2fa3620154e7046b3d263df1ec263514676eb3585096",
    parse=parsers.protein,
    split_count=5,
    doi="10.24432/C5QW3H",
)

WINE = DatasetInfo(
    name="wine",
    rows=1599,
    feature_names=(
        "fixed acidity",
        "volatile acidity",
        "citric acid",
        "residual sugar",
        "chlorides",
        "free sulfur dioxide",
        "total sulfur dioxide",
        "density",
        "pH",
        "sulphates",
        "alcohol",
    ),
    target_name="quality (score 0 to 10)",
    url=f"{UCI}/wine-quality/winequality-red.csv",
    download_sha256="4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
    array_sha256="d4f6a6d672e0ee31d41fdd93b4b58985b45a31f2f971499c18137c42229278ac",
    parse=parsers.wine,
    doi="10.24432/C56S3T",
)

YACHT = DatasetInfo(
    name="yacht",
    rows=308,
    feature_names=(
        "longitudinal position of the center of buoyancy",
        "prismatic coefficient",
        "length-displacement ratio",
        "beam-draught ratio",
        "length-beam ratio",
        "Froude number",
    ),
    target_name="residuary resistance per unit weight of displacement",
    url=f"{UCI}/00243/yacht_hydrodynamics.data",
    download_sha256="00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
    array_sha256="ec08588637fd93582116a1ead33f0c1e787dae755168073608e030e5282a3f4e",
    parse=parsers.yacht,
    doi="10.24432/C5XG7R",
)

YEAR = DatasetInfo(
    name="year",
    rows=515345,
    feature_names=(
        *(f"timbre average {number}" for number in range(1, 13)),
        *(f"timbre covariance {number}" for number in range(1, 79)),
    ),
    target_name="year of release",
    url=f"{UCI}/00203/YearPredictionMSD.txt.zip",
    download_sha256=None,  # not known: checked by shape and range only
    array_sha256=None,
    parse=parsers.year,
    split_count=1,
    train_rows=463715,
    target_range=(1922, 2011),
    doi="10.24432/C50K61",
)

_ALL = (BOSTON, CONCRETE, ENERGY, KIN8NM, NAVAL, POWER, PROTEIN, WINE, YACHT, YEAR)
REGISTRY: dict[str, DatasetInfo] = {entry.name: entry for entry in _ALL}


def names() -> tuple[str, ...]:
    """Names of all data sets, in alphabetical order."""
    return tuple(sorted(REGISTRY))


def info(name: str) -> DatasetInfo:
    """What the registry knows about one set.

    Raises:
        UnknownDatasetError: no set has this name.
    """
    if name not in REGISTRY:
        raise unknown_dataset(name, names())
    return REGISTRY[name]
