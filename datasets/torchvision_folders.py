"""What is known of torchvision's data sets of image files; imports no torch."""

from collections.abc import Mapping
from typing import Literal

from datasets.torchvision_table import (
    ALL_THREE,
    IN_MEMORY,
    TRAIN_TEST,
    Arguments,
    Official,
    Opening,
    Own,
    splits,
    whole,
)

_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_CARS = "stanford_cars/"
_INATURALIST = "https://ml-inat-competition-datasets.s3.amazonaws.com/"
_PLACES = "http://data.csail.mit.edu/places/places365/"
_TRAIN_VAL = splits(train="train", val="val")


def _inaturalist(own: Arguments) -> list[Opening]:
    is_new = own["version"].startswith("2021")
    if own["target_type"] not in ("full", "super") and not is_new:
        raise ValueError(f"target_type: {own['target_type']} is of the versions of 2021 only")
    if own["target_type"] == "super" and is_new:
        raise ValueError("target_type: super is of the versions 2017, 2018 and 2019 only")
    if not is_new:
        return [(None, own)]
    return [("train", own), ("val", {**own, "version": "2021_valid"})]


OF_FILES: Mapping[str, Official] = {
    "Flowers102": Official(
        "Oxford 102 Flower: 1,020 + 1,020 + 6,149 photographs, 102 classes.",
        "flowers-102/jpg flowers-102/imagelabels.mat flowers-102/setid.mat",
        f"{_OXFORD}flowers/102/102flowers.tgz {_OXFORD}flowers/102/imagelabels.mat "
        f"{_OXFORD}flowers/102/setid.mat",
        ALL_THREE,
        needs="scipy",
        place="flowers-102",
    ),
    "OxfordIIITPet": Official(
        "Oxford-IIIT Pet: 3,680 + 3,669 photographs of 37 breeds of cats and dogs.",
        "oxford-iiit-pet/images oxford-iiit-pet/annotations",
        f"{_OXFORD}pets/data/images.tar.gz {_OXFORD}pets/data/annotations.tar.gz",
        splits(train="trainval", test="test"),
        {
            "target_types": Own(
                Literal["category", "binary-category"],
                "category",
                "The classes: the 37 breeds, or Cat and Dog.",
            )
        },
        place="oxford-iiit-pet",
    ),
    "Food101": Official(
        "Food-101: 75,750 + 25,250 photographs of dishes, 101 classes.",
        "food-101/meta food-101/images",
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        TRAIN_TEST,
    ),
    "EuroSAT": Official(
        "EuroSAT in RGB: 27,000 satellite images of 64 x 64, 10 classes, without parts.",
        "eurosat/2750",
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        whole,
        images=27_000,
        place="eurosat",
    ),
    "GTSRB": Official(
        "German Traffic Sign Recognition Benchmark: 26,640 + 12,630 signs, 43 classes.",
        "gtsrb/GTSRB/Training gtsrb/GTSRB/Final_Test/Images gtsrb/GT-final_test.csv",
        f"{_GTSRB}GTSRB-Training_fixed.zip {_GTSRB}GTSRB_Final_Test_Images.zip "
        f"{_GTSRB}GTSRB_Final_Test_GT.zip",
        TRAIN_TEST,
        images=39_270,
        place="gtsrb",
    ),
    "DTD": Official(
        "Describable Textures: 1,880 + 1,880 + 1,880 photographs, 47 classes.",
        "dtd/dtd/labels dtd/dtd/images",
        f"{_OXFORD}dtd/download/dtd-r1.0.1.tar.gz",
        ALL_THREE,
        {
            "partition": Own(
                Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
                1,
                "Which of the ten official partitions into train, val and test.",
            )
        },
        place="dtd",
    ),
    "Imagenette": Official(
        "Imagenette: ten easy classes of ImageNet, 9,469 + 3,925 (val) photographs.",
        "{folder}",
        "https://s3.amazonaws.com/fast-ai-imageclas/{folder}.tgz",
        _TRAIN_VAL,
        {"size": Own(Literal["full", "320px", "160px"], "full", "The length of shorter sides.")},
        images=13_394,
        words={
            "full": {"folder": "imagenette2"},
            "320px": {"folder": "imagenette2-320"},
            "160px": {"folder": "imagenette2-160"},
        },
    ),
    "Caltech101": Official(
        "Caltech 101: 8,677 pictures of objects, 101 classes, without parts.",
        "caltech101/101_ObjectCategories",
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        whole,
        images=8_677,
        place="caltech101",
    ),
    "Caltech256": Official(
        "Caltech 256: 30,607 pictures of objects, 257 classes (one is clutter), without parts.",
        "caltech256/256_ObjectCategories",
        "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
        whole,
        images=30_607,
        place="caltech256",
    ),
    "Country211": Official(
        "Country211: 31,650 + 10,550 + 21,100 photographs by country, 211 classes.",
        "country211",
        "https://openaipublic.azureedge.net/clip/data/country211.tgz",
        splits(train="train", val="valid", test="test"),
        fetched="no",
        images=63_300,
    ),
    "FGVCAircraft": Official(
        "FGVC Aircraft: 3,334 + 3,333 + 3,333 photographs of aircraft.",
        "fgvc-aircraft-2013b/data",
        f"{_OXFORD}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        ALL_THREE,
        {
            "annotation_level": Own(
                Literal["variant", "family", "manufacturer"],
                "variant",
                "The classes: 100 variants, 70 families or 30 manufacturers.",
            )
        },
        fetched="never",
        place=None,
    ),
    "StanfordCars": Official(
        "Stanford Cars: 8,144 + 8,041 photographs of cars, 196 classes; no longer to be had there.",
        f"{_CARS}devkit/cars_meta.mat {_CARS}devkit/cars_train_annos.mat {_CARS}cars_train "
        f"{_CARS}cars_test_annos_withlabels.mat {_CARS}cars_test",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        TRAIN_TEST,
        needs="scipy",
        fetched="never",
        place=None,
    ),
    "RenderedSST2": Official(
        "Rendered SST2: 6,920 + 872 + 1,821 pictures of sentences, negative or positive.",
        "rendered-sst2/train rendered-sst2/valid rendered-sst2/test",
        "https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz",
        ALL_THREE,
        images=9_613,
    ),
    "SUN397": Official(
        "SUN397: 108,754 photographs of scenes, 397 classes, without parts.",
        "SUN397",
        "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
        whole,
        fetched="no",
        images=108_754,
    ),
    "Omniglot": Official(
        "Omniglot: grey characters of 105 x 105, 20 of each, without parts.",
        "omniglot-py/{folder}.zip omniglot-py/{folder}",
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{folder}.zip",
        whole,
        {
            "background": Own(
                bool, True, "The 964 characters of 30 alphabets; false: 659 of 20 others."
            )
        },
        words={True: {"folder": "images_background"}, False: {"folder": "images_evaluation"}},
        place=None,  # a whole archive that lies there is not unpacked
    ),
    "LFWPeople": Official(
        "Labeled Faces in the Wild: 13,233 faces of 5,749 persons, one of most, no parts.",
        "lfw-py/{archive} lfw-py/{folder} lfw-py/people.txt lfw-py/lfw-names.txt",
        "http://vis-www.cs.umass.edu/lfw/{archive} http://vis-www.cs.umass.edu/lfw/people.txt "
        "http://vis-www.cs.umass.edu/lfw/lfw-names.txt",
        whole,
        {
            "image_set": Own(
                Literal["original", "funneled", "deepfunneled"],
                "funneled",
                "How the faces are aligned.",
            )
        },
        fetched="never",
        words={
            "original": {"folder": "lfw", "archive": "lfw.tgz"},
            "funneled": {"folder": "lfw_funneled", "archive": "lfw-funneled.tgz"},
            "deepfunneled": {"folder": "lfw-deepfunneled", "archive": "lfw-deepfunneled.tgz"},
        },
    ),
    "INaturalist": Official(
        "iNaturalist: photographs of species; the versions of 2021 have train and val.",
        "{folders}",
        f"{_INATURALIST}{{archive}}",
        _inaturalist,
        {
            "version": Own(
                Literal["2017", "2018", "2019", "2021_train", "2021_train_mini"],
                "2021_train",
                "The version; 2021_valid is the val of both of 2021.",
            ),
            "target_type": Own(
                Literal["full", "kingdom", "phylum", "class", "order", "family", "genus", "super"],
                "full",
                "The classes; super is of 2017 to 2019, the others but full are of 2021.",
            ),
        },
        fetched="no",
        words={
            "2017": {"folders": "2017", "archive": "2017/train_val_images.tar.gz"},
            "2018": {"folders": "2018", "archive": "2018/train_val2018.tar.gz"},
            "2019": {"folders": "2019", "archive": "2019/train_val2019.tar.gz"},
            **{
                f"2021_{train}": {
                    "folders": f"2021_{train} 2021_valid",
                    "archive": f"2021/{train}.tar.gz {_INATURALIST}2021/val.tar.gz",
                }
                for train in ("train", "train_mini")
            },
        },
        place=None,
    ),
    "Places365": Official(
        "Places365: 1.8 million (or 8 million) + 36,500 (val) photographs of scenes, 365 classes.",
        "categories_places365.txt places365_train_{variant}.txt places365_val.txt "
        "data_{size}_{variant} val_{size}",
        f"{_PLACES}filelist_places365-{{variant}}.tar "
        f"{_PLACES}train_{{size}}_places365{{variant}}.tar {_PLACES}val_{{size}}.tar",
        lambda own: [("train", own), ("val", {**own, "split": "val"})],
        {
            "split": Own(
                Literal["train-standard", "train-challenge"],
                "train-standard",
                "Which of the two training sets.",
            ),
            "small": Own(bool, False, "The images of 256 x 256 instead of the larger ones."),
        },
        fetched="no",
        words={
            "train-standard": {"variant": "standard"},
            "train-challenge": {"variant": "challenge"},
            True: {"size": "256"},
            False: {"size": "large"},
        },
    ),
    "ImageNet": Official(
        "ImageNet 2012: 1,281,167 + 50,000 (val) photographs, 1,000 classes by their WordNet ids.",
        "train val meta.bin",
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        _TRAIN_VAL,
        needs="scipy",
        fetched="never",
        images=1_331_167,
    ),
    "CLEVRClassification": Official(
        "CLEVR: 70,000 + 15,000 (val) rendered scenes; the class is the number of objects.",
        "clevr/CLEVR_v1.0/images clevr/CLEVR_v1.0/scenes",
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        _TRAIN_VAL,
        fetched="no",
        place="clevr",
    ),
}

OFFICIAL: Mapping[str, Official] = {**IN_MEMORY, **OF_FILES}
