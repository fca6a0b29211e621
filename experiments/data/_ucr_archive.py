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

# Training series, test series and their length, as published with the archive of 2018.
SIZES = {
    "Adiac": (390, 391, 176),
    "ArrowHead": (36, 175, 251),
    "Beef": (30, 30, 470),
    "BeetleFly": (20, 20, 512),
    "BirdChicken": (20, 20, 512),
    "CBF": (30, 900, 128),
    "Chinatown": (20, 343, 24),
    "Coffee": (28, 28, 286),
    "CricketX": (390, 390, 300),
    "CricketY": (390, 390, 300),
    "DiatomSizeReduction": (16, 306, 345),
    "DistalPhalanxOutlineAgeGroup": (400, 139, 80),
    "DistalPhalanxOutlineCorrect": (600, 276, 80),
    "Earthquakes": (322, 139, 512),
    "ECG200": (100, 100, 96),
    "FiftyWords": (450, 455, 270),
    "Fish": (175, 175, 463),
    "Fungi": (18, 186, 201),
    "GunPoint": (50, 150, 150),
    "GunPointAgeSpan": (135, 316, 150),
    "GunPointMaleVersusFemale": (135, 316, 150),
    "GunPointOldVersusYoung": (136, 315, 150),
    "Herring": (64, 64, 512),
    "HouseTwenty": (40, 119, 2000),
    "InsectEPGRegularTrain": (62, 249, 601),
    "InsectEPGSmallTrain": (17, 249, 601),
    "ItalyPowerDemand": (67, 1029, 24),
    "Lightning2": (60, 61, 637),
    "MedicalImages": (381, 760, 99),
    "MiddlePhalanxOutlineAgeGroup": (400, 154, 80),
    "MiddlePhalanxOutlineCorrect": (600, 291, 80),
    "MiddlePhalanxTW": (399, 154, 80),
    "OSULeaf": (200, 242, 427),
    "PhalangesOutlinesCorrect": (1800, 858, 80),
    "PowerCons": (180, 180, 144),
    "ProximalPhalanxOutlineAgeGroup": (400, 205, 80),
    "ProximalPhalanxOutlineCorrect": (600, 291, 80),
    "ProximalPhalanxTW": (400, 205, 80),
    "Rock": (20, 50, 2844),
    "ShapeletSim": (20, 180, 500),
    "SmoothSubspace": (150, 150, 15),
    "SonyAIBORobotSurface1": (20, 601, 70),
    "SyntheticControl": (300, 300, 60),
    "ToeSegmentation2": (36, 130, 343),
    "UWaveGestureLibraryZ": (896, 3582, 315),
    "WordSynonyms": (267, 638, 270),
    "Worms": (181, 77, 900),
    "WormsTwoClass": (181, 77, 900),
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
