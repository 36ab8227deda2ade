"""Landmark tables: both formats, and one line for everything that is wrong."""

import json

import pytest

from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.landmark_table import (
    dog_problems,
    read_landmark_table,
    split_problems,
    table_notes,
)

HEADER = "image,side,head_x,head_y,head_radius,rim_x,rim_y,norberg_angle"
LEFT = "a.png,image_left,100,200,20,90,170,"
RIGHT = "a.png,image_right,300,210,20,305,180,"
LANDMARKS = Landmarks(Hip(100, 200, 20, 90, 170), Hip(300, 210, 20, 305, 180))


def table(folder, *rows, header=HEADER):
    path = folder / "landmarks.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def problems(folder, *rows, header=HEADER):
    """The lines without the folder."""
    read = read_landmark_table(table(folder, *rows, header=header))
    assert read.problems or read.entries
    return [line.replace(f"{folder}/", "") for line in read.problems]


def test_two_rows_make_a_film(tmp_path):
    read = read_landmark_table(table(tmp_path, RIGHT, LEFT))
    (entry,) = read.entries
    assert read.problems == []
    assert entry.landmarks == LANDMARKS
    assert (entry.film, entry.dog, entry.split, entry.prompt_class) == ("a.png", "a", None, 4)


def test_dicom_files_that_are_named_by_identifiers_are_dogs_of_their_own(tmp_path):
    names = ["1.2.840.1", "1.2.840.2", "x/b.PNG"]
    rows = [row.replace("a.png", name) for name in names for row in (LEFT, RIGHT)]
    read = read_landmark_table(table(tmp_path, *rows))
    assert [entry.dog for entry in read.entries] == ["1.2.840.1", "1.2.840.2", "x/b"]


def test_optional_columns(tmp_path):
    header = HEADER + ",dog,split,prompt_class"
    path = table(tmp_path, LEFT + ",rex,test,2", RIGHT + ",rex,test,2", header=header)
    read = read_landmark_table(path)
    (entry,) = read.entries
    assert read.problems == []
    assert (entry.dog, entry.split, entry.prompt_class) == ("rex", "test", 2)


def test_names_of_columns_may_have_capitals_and_blanks(tmp_path):
    header = HEADER.replace("image,side", " Image,Side ") + ",Dog ,SPLIT"
    path = table(tmp_path, LEFT + ",rex,test", RIGHT + ",rex,test", header=header)
    (entry,) = read_landmark_table(path).entries
    assert (entry.film, entry.dog, entry.split) == ("a.png", "rex", "test")
    (line,) = problems(tmp_path, LEFT + ",rex,max", header=HEADER + ",dog,Dog")
    assert line == "landmarks.csv row 1: column dog is there twice"


ALONE = "no dog is named (column dog), so that every film counts as a dog of its own"


@pytest.mark.parametrize(
    ("columns", "values", "notes"),
    [
        ("", "", [ALONE]),
        (",Dog_ID, patient,", ",rex,1,", [ALONE, "not read: dog_id, patient"]),
        (",dog", ",", [ALONE]),
        (",DOG ", ",rex", []),
        (",dog,splits", ",rex,test", ["not read: splits"]),
    ],
)
def test_films_without_dogs_and_columns_that_are_not_read_are_said(
    tmp_path, columns, values, notes
):
    path = table(tmp_path, LEFT + values, RIGHT + values, header=HEADER + columns)
    read = read_landmark_table(path)
    assert read.problems == [] and table_notes(read) == notes


def test_splits_are_of_no_account_where_no_films_are_dealt(tmp_path):
    rows = [f"{LEFT},test", f"{RIGHT},test"]
    rows += [f"{row.replace('a.png', 'b.png')}," for row in (LEFT, RIGHT)]
    path = table(tmp_path, *rows, header=HEADER + ",split")
    read = read_landmark_table(path)
    assert read.problems == [] and "b.png has no split" in split_problems(read.entries)[0]


def test_y_must_run_downwards(tmp_path):
    rows = ["a.png,image_left,100,100,20,90,130,", "a.png,image_right,300,90,20,305,120,"]
    (line,) = problems(tmp_path, *rows)
    assert line.startswith("landmarks.csv row 2: a.png: both rim points lie below the line between")
    # a head that is out of its socket may lie beside or above its rim, but not medial of it, too
    (line,) = problems(tmp_path, rows[0], "a.png,image_right,300,90,20,290,80,")
    assert "a.png: the rim point of image_left lies below the line between the heads" in line
    out = "a.png,image_left,100,100,20,130,120,"
    assert problems(tmp_path, out, "a.png,image_right,300,90,20,290,80,") == []


def test_a_film_may_be_turned(tmp_path):
    """Above and below are those of the line between the heads, however it runs."""
    rows = ["a.png,image_left,100,100,20,90,70,", "a.png,image_right,300,180,20,305,150,"]
    assert problems(tmp_path, *rows) == []
    assert problems(tmp_path, rows[0].replace("90,70", "80,110"), rows[1]) != []
    across = ["a.png,image_left,100,180,20,90,150,", "a.png,image_right,300,100,20,305,70,"]
    assert problems(tmp_path, *across) == []


def test_a_head_is_no_larger_than_the_way_to_the_other_allows(tmp_path):
    """A lost decimal point would leave names near a hip unmasked."""
    assert problems(tmp_path, LEFT.replace(",20,", ",99,"), RIGHT) == []
    (line,) = problems(tmp_path, LEFT.replace(",20,", ",1010,"), RIGHT)
    assert "a.png: head_radius 1010 of image_left is more than half the 200.25 pixels" in line


def test_a_right_angle_passes_and_a_wrong_one_does_not(tmp_path):
    angles = LANDMARKS.norberg_angles()
    near, far = angles.image_left + 0.49, angles.image_right - 0.51
    assert problems(tmp_path, f"{LEFT}{near}", f"{RIGHT}{angles.image_right}") == []
    (line,) = problems(tmp_path, f"{LEFT}{near}", f"{RIGHT}{far:.3f}")
    assert line == (
        f"landmarks.csv row 3: norberg_angle of a.png image_right is {float(f'{far:.3f}'):g}"
        f" but the landmarks give {angles.image_right:.1f} degrees"
    )


def test_everything_is_listed_at_once_with_its_row(tmp_path):
    lines = problems(
        tmp_path,
        LEFT,  # row 2
        RIGHT,
        RIGHT,  # row 4: twice
        "b.png,image_left,1,2,3,x,nan,",  # row 5: two values
        "b.png,image_right,300,2,-3,4,5,",  # row 6: radius
        "",  # row 7: empty, skipped
        "c.png,image_left,100,200,20,90,170,",  # row 8: no other side
        "d.png,patient_left,100,200,20,90,170,",  # row 9
        "e.png,image_right,1,2,3,4,5,,9,9",  # row 10
        "f.png,image_left,300,200,20,90,170,",  # row 11: sides swapped
        "f.png,image_right,100,200,20,100,200,",
        ",image_left,300,200,20,90,170,hundred",  # row 13
    )
    expected = [
        "row 4: a.png image_right is there twice, first in landmarks.csv row 3",
        "row 5: rim_x 'x' is not a number",
        "row 5: rim_y 'nan' is not a number",
        "row 6: head_radius '-3' is not above zero",
        "row 9: side 'patient_left' is not image_left or image_right",
        "row 10: it has more values than there are columns",
        "row 13: the image is missing",
        "row 13: norberg_angle 'hundred' is not a number",
        "row 8: c.png has no row for image_right",
        "row 10: e.png has no row for image_left",
        "row 11: f.png: the head of image_left (x 300.0) is not to the left of that of"
        " image_right (x 100.0); sides are the image's, not the patient's",
        "row 11: f.png: rim point and head centre of image_right are the same point",
    ]
    assert lines == [f"landmarks.csv {line}" for line in expected]


def test_every_film_that_is_named_can_be_looked_for(tmp_path):
    read = read_landmark_table(table(tmp_path, LEFT, RIGHT.replace("305", "x")))
    assert len(read.problems) == 1 and read.entries == []
    assert read.films == {"a.png": f"{tmp_path}/landmarks.csv row 2"}


def test_splits_must_be_complete_and_keep_a_dog_together(tmp_path):
    other = [row.replace("a.png", "b.png") for row in (LEFT, RIGHT)]
    third = [row.replace("a.png", "c.png") for row in (LEFT, RIGHT)]
    rows = [f"{row},rex,train" for row in (LEFT, RIGHT)]
    rows += [f"{row},rex,test" for row in other]
    rows += [f"{row},max," for row in third]
    path = table(tmp_path, *rows, header=HEADER + ",dog,split")
    assert split_problems(read_landmark_table(path).entries) == [
        f"{path} row 6: c.png has no split, other films have; give every film one, or leave the"
        " column out",
        f"{path} row 4: dog rex is in split test, but a.png puts it in train",
    ]


@pytest.mark.parametrize(
    ("one", "other"), [("rex", "Rex"), ("Zo\u00eb", "Zoe\u0308"), ("dog 1", "dog  1")]
)
def test_a_dog_has_one_spelling(tmp_path, one, other):
    dogs = {"a.png": one, "b.png": other, "c.png": "max", "d.png": one}
    rows = [
        f"{row.replace('a.png', film)},{dog}" for film, dog in dogs.items() for row in (LEFT, RIGHT)
    ]
    path = table(tmp_path, *rows, header=HEADER + ",dog")
    (line,) = dog_problems(read_landmark_table(path).entries)
    assert line.startswith(f"{path} row 4: dog {other!a} is spelled {one!a} in {path} row 2; ")


def test_film_columns_are_checked(tmp_path):
    lines = problems(
        tmp_path,
        LEFT + ",rex,holdout,7",
        RIGHT + ",max,,",
        header=HEADER + ",dog,split,prompt_class",
    )
    assert lines == [
        "landmarks.csv row 2: split 'holdout' is not one of train, validation, test",
        "landmarks.csv row 2: prompt_class '7' is not one of 1, 2, 3, 4",
    ]
    (line,) = problems(tmp_path, LEFT + ",rex", RIGHT + ",max", header=HEADER + ",dog")
    assert line == "landmarks.csv row 2: a.png has two different values of dog"


def test_unreadable_tables(tmp_path):
    assert read_landmark_table(tmp_path / "no.csv").problems == [
        f"{tmp_path}/no.csv: no such landmark table"
    ]
    assert problems(tmp_path) == ["landmarks.csv: no film in it"]
    (line,) = problems(tmp_path, header=HEADER.replace(",", ";"))
    assert line.endswith("rim_y; separate the columns by commas")
    (line,) = problems(tmp_path, header=HEADER.replace(",", "\t"))
    assert line.endswith("; separate the columns by commas")
    assert read_landmark_table(tmp_path).problems == [f"{tmp_path}: is a folder, no landmark table"]
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\xe4")
    assert read_landmark_table(tmp_path / "latin.csv").problems == [
        f"{tmp_path}/latin.csv: not a UTF-8 text file"
    ]


def test_a_quotation_mark_that_is_not_closed(tmp_path):
    path = tmp_path / "landmarks.csv"
    path.write_text(f'{HEADER}\n"{LEFT}\n' + f"{RIGHT}\n" * 5000)
    first = read_landmark_table(path).problems[0]
    assert first.startswith(f"{path} row ") and "is a quotation mark not closed?" in first


NAMES = [
    f"{side}_{part}"
    for side in ("image_left", "image_right")
    for part in ("head", "head_edge", "rim")
]
KEYPOINTS = [100, 200, 2, 112, 216, 2, 90, 170, 2, 300, 210, 2, 300, 190, 1, 305, 180, 2]


def coco(folder, keypoints=KEYPOINTS, annotations=None, **image):
    path = folder / "landmarks.json"
    annotation = {"id": 5, "image_id": 7, "category_id": 1, "keypoints": keypoints}
    tree = {
        "images": [{"id": 7, "file_name": "a.png", "width": 400, "height": 300, **image}],
        "categories": [{"id": 1, "name": "hips", "keypoints": NAMES}],
        "annotations": [annotation] if annotations is None else annotations(annotation),
    }
    path.write_text(json.dumps(tree))
    return path


def test_coco_keypoints_give_the_same_landmarks(tmp_path):
    read = read_landmark_table(coco(tmp_path, dog="rex", split="test", prompt_class=1))
    (entry,) = read.entries
    assert read.problems == []
    assert entry.landmarks == LANDMARKS
    assert (entry.film, entry.dog, entry.split, entry.prompt_class) == ("a.png", "rex", "test", 1)


def test_names_beside_a_coco_image_may_have_capitals_and_ids_may_not_come_twice(tmp_path):
    path = coco(tmp_path, Dog="rex")
    assert read_landmark_table(path).entries[0].dog == "rex"
    tree = json.loads(path.read_text())
    tree["images"].append({"id": 7, "file_name": "b.png"})
    path.write_text(json.dumps(tree))
    assert read_landmark_table(path).problems[0] == f"{path}: several images have the id 7"


def test_what_coco_says_of_an_image_and_is_not_read_is_said(tmp_path):
    read = read_landmark_table(coco(tmp_path, Patient="rex", license=1))
    assert read.problems == [] and table_notes(read) == [ALONE, "not read: patient"]
    assert table_notes(read_landmark_table(coco(tmp_path, Dog="rex", date_captured=""))) == []


def test_coco_may_number_dogs_from_0(tmp_path):
    (entry,) = read_landmark_table(coco(tmp_path, dog=0)).entries
    assert entry.dog == "0"
    (line,) = read_landmark_table(coco(tmp_path, prompt_class=0)).problems
    assert "prompt_class '0' is not one of" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": KEYPOINTS[:-1]}, "annotation 1: a.png: keypoints are not 6 triples"),
        (
            {"keypoints": [0, 0, 0, *KEYPOINTS[3:]]},
            "annotation 1: a.png: keypoint image_left_head is not labelled",
        ),
        ({"split": "holdout"}, "annotation 1: a.png: split 'holdout' is not one of"),
        ({"annotations": lambda a: [a, a]}, "annotation 2: a.png is there twice"),
        ({"annotations": lambda a: [{**a, "image_id": 8}]}, "annotation 1: image_id 8 has no"),
        ({"annotations": lambda a: [{**a, "image_id": [7]}]}, "annotation 1: image_id [7] has no"),
        ({"annotations": lambda a: [{**a, "category_id": [1]}]}, "keypoints are not 0 triples"),
        ({"annotations": lambda a: [3]}, ": not COCO keypoints"),
        ({"keypoints": [*KEYPOINTS[9:], *KEYPOINTS[:9]]}, "annotation 1: a.png: the head of"),
    ],
)
def test_what_is_wrong_with_a_coco_file(tmp_path, change, message):
    lines = read_landmark_table(coco(tmp_path, **change)).problems
    assert message in lines[0]


def test_an_image_without_annotation_and_broken_json(tmp_path):
    lines = read_landmark_table(coco(tmp_path, annotations=lambda a: [])).problems
    assert lines == [f"{tmp_path}/landmarks.json: image 'a.png' has no annotation"]
    (tmp_path / "landmarks.json").write_text("{")
    assert "not COCO keypoints" in read_landmark_table(tmp_path / "landmarks.json").problems[0]
