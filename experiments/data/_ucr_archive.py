"""Facts of the UCR archive: how its sets were renamed, and how large they are."""

from __future__ import annotations

# The names of 2015 that are not those of 2018.
NAMES_OF_2015 = {
    "CinC_ECG_torso": "CinCECGTorso",
    "Cricket_X": "CricketX",
    "Cricket_Y": "CricketY",
    "Cricket_Z": "CricketZ",
    "50words": "FiftyWords",
    "FISH": "Fish",
    "Gun_Point": "GunPoint",
    "Lighting2": "Lightning2",
    "Lighting7": "Lightning7",
    "MALLAT": "Mallat",
    "NonInvasiveFatalECG_Thorax1": "NonInvasiveFetalECGThorax1",
    "NonInvasiveFatalECG_Thorax2": "NonInvasiveFetalECGThorax2",
    "SonyAIBORobotSurface": "SonyAIBORobotSurface1",
    "SonyAIBORobotSurfaceII": "SonyAIBORobotSurface2",
    "synthetic_control": "SyntheticControl",
    "Two_Patterns": "TwoPatterns",
    "uWaveGestureLibrary_X": "UWaveGestureLibraryX",
    "uWaveGestureLibrary_Y": "UWaveGestureLibraryY",
    "uWaveGestureLibrary_Z": "UWaveGestureLibraryZ",
    "wafer": "Wafer",
    "WordsSynonyms": "WordSynonyms",
    "yoga": "Yoga",
}

# The folder of the archive of 2018 with the repaired copies of sets that vary in length or miss
# values.
ADJUSTED = "Missing_value_and_variable_length_datasets_adjusted"

# Training series, test series and their length, as published with the archive of 2018. Left out are
# the fifteen sets whose series vary in length or miss values: they exist in several repairs.
SIZES = {
    "ACSF1": (100, 100, 1460),
    "Adiac": (390, 391, 176),
    "ArrowHead": (36, 175, 251),
    "Beef": (30, 30, 470),
    "BeetleFly": (20, 20, 512),
    "BirdChicken": (20, 20, 512),
    "BME": (30, 150, 128),
    "Car": (60, 60, 577),
    "CBF": (30, 900, 128),
    "Chinatown": (20, 343, 24),
    "ChlorineConcentration": (467, 3840, 166),
    "CinCECGTorso": (40, 1380, 1639),
    "Coffee": (28, 28, 286),
    "Computers": (250, 250, 720),
    "CricketX": (390, 390, 300),
    "CricketY": (390, 390, 300),
    "CricketZ": (390, 390, 300),
    "Crop": (7200, 16800, 46),
    "DiatomSizeReduction": (16, 306, 345),
    "DistalPhalanxOutlineAgeGroup": (400, 139, 80),
    "DistalPhalanxOutlineCorrect": (600, 276, 80),
    "DistalPhalanxTW": (400, 139, 80),
    "Earthquakes": (322, 139, 512),
    "ECG200": (100, 100, 96),
    "ECG5000": (500, 4500, 140),
    "ECGFiveDays": (23, 861, 136),
    "ElectricDevices": (8926, 7711, 96),
    "EOGHorizontalSignal": (362, 362, 1250),
    "EOGVerticalSignal": (362, 362, 1250),
    "EthanolLevel": (504, 500, 1751),
    "FaceAll": (560, 1690, 131),
    "FaceFour": (24, 88, 350),
    "FacesUCR": (200, 2050, 131),
    "FiftyWords": (450, 455, 270),
    "Fish": (175, 175, 463),
    "FordA": (3601, 1320, 500),
    "FordB": (3636, 810, 500),
    "FreezerRegularTrain": (150, 2850, 301),
    "FreezerSmallTrain": (28, 2850, 301),
    "Fungi": (18, 186, 201),
    "GunPoint": (50, 150, 150),
    "GunPointAgeSpan": (135, 316, 150),
    "GunPointMaleVersusFemale": (135, 316, 150),
    "GunPointOldVersusYoung": (136, 315, 150),
    "Ham": (109, 105, 431),
    "HandOutlines": (1000, 370, 2709),
    "Haptics": (155, 308, 1092),
    "Herring": (64, 64, 512),
    "HouseTwenty": (40, 119, 2000),
    "InlineSkate": (100, 550, 1882),
    "InsectEPGRegularTrain": (62, 249, 601),
    "InsectEPGSmallTrain": (17, 249, 601),
    "InsectWingbeatSound": (220, 1980, 256),
    "ItalyPowerDemand": (67, 1029, 24),
    "LargeKitchenAppliances": (375, 375, 720),
    "Lightning2": (60, 61, 637),
    "Lightning7": (70, 73, 319),
    "Mallat": (55, 2345, 1024),
    "Meat": (60, 60, 448),
    "MedicalImages": (381, 760, 99),
    "MiddlePhalanxOutlineAgeGroup": (400, 154, 80),
    "MiddlePhalanxOutlineCorrect": (600, 291, 80),
    "MiddlePhalanxTW": (399, 154, 80),
    "MixedShapesRegularTrain": (500, 2425, 1024),
    "MixedShapesSmallTrain": (100, 2425, 1024),
    "MoteStrain": (20, 1252, 84),
    "NonInvasiveFetalECGThorax1": (1800, 1965, 750),
    "NonInvasiveFetalECGThorax2": (1800, 1965, 750),
    "OliveOil": (30, 30, 570),
    "OSULeaf": (200, 242, 427),
    "PhalangesOutlinesCorrect": (1800, 858, 80),
    "Phoneme": (214, 1896, 1024),
    "PigAirwayPressure": (104, 208, 2000),
    "PigArtPressure": (104, 208, 2000),
    "PigCVP": (104, 208, 2000),
    "Plane": (105, 105, 144),
    "PowerCons": (180, 180, 144),
    "ProximalPhalanxOutlineAgeGroup": (400, 205, 80),
    "ProximalPhalanxOutlineCorrect": (600, 291, 80),
    "ProximalPhalanxTW": (400, 205, 80),
    "RefrigerationDevices": (375, 375, 720),
    "Rock": (20, 50, 2844),
    "ScreenType": (375, 375, 720),
    "SemgHandGenderCh2": (300, 600, 1500),
    "SemgHandMovementCh2": (450, 450, 1500),
    "SemgHandSubjectCh2": (450, 450, 1500),
    "ShapeletSim": (20, 180, 500),
    "ShapesAll": (600, 600, 512),
    "SmallKitchenAppliances": (375, 375, 720),
    "SmoothSubspace": (150, 150, 15),
    "SonyAIBORobotSurface1": (20, 601, 70),
    "SonyAIBORobotSurface2": (27, 953, 65),
    "StarLightCurves": (1000, 8236, 1024),
    "Strawberry": (613, 370, 235),
    "SwedishLeaf": (500, 625, 128),
    "Symbols": (25, 995, 398),
    "SyntheticControl": (300, 300, 60),
    "ToeSegmentation1": (40, 228, 277),
    "ToeSegmentation2": (36, 130, 343),
    "Trace": (100, 100, 275),
    "TwoLeadECG": (23, 1139, 82),
    "TwoPatterns": (1000, 4000, 128),
    "UMD": (36, 144, 150),
    "UWaveGestureLibraryAll": (896, 3582, 945),
    "UWaveGestureLibraryX": (896, 3582, 315),
    "UWaveGestureLibraryY": (896, 3582, 315),
    "UWaveGestureLibraryZ": (896, 3582, 315),
    "Wafer": (1000, 6164, 152),
    "Wine": (57, 54, 234),
    "WordSynonyms": (267, 638, 270),
    "Worms": (181, 77, 900),
    "WormsTwoClass": (181, 77, 900),
    "Yoga": (300, 3000, 426),
}


def spellings(name: str) -> tuple[str, ...]:
    """The set's names, the given one first: ``50words`` is ``FiftyWords``."""
    official = official_name(name)
    old = {new: old for old, new in NAMES_OF_2015.items()}.get(official, official)
    return tuple(dict.fromkeys((name, official, old)))


def official_name(name: str) -> str:
    """The set's name in the archive of 2018."""
    return NAMES_OF_2015.get(name, name)


def published_sizes(name: str, part: str, *, of_2015: bool) -> set[tuple[int, int]]:
    """How many series a file may have, and of what length; empty where this is not known here.

    Several sets of 2015 had their training and test files exchanged for the archive of 2018: of a
    file of 2015 either size is allowed.

    Args:
        name: of the set, of 2015 or of 2018.
        part: ``TRAIN`` or ``TEST``.
        of_2015: whether the file is that of 2015.
    """
    official = official_name(name)
    if official not in SIZES:
        return set()
    train, test, length = SIZES[official]
    counts = {"TRAIN": train, "TEST": test}
    return {(count, length) for key, count in counts.items() if of_2015 or key == part}
