"""A lab's folder of films with landmarks, phantoms standing in for radiographs."""

from PIL import Image

from hpc_hipgen.radiograph.geometry import IMAGE_SIDES
from hpc_hipgen.radiograph.phantom import draw_phantom

HEAD = "image,side,head_x,head_y,head_radius,rim_x,rim_y,dog"


def write_lab(folder, dogs=4, films=2, size=160):
    """Writes films-1.png ... of so many dogs, `films` each, and landmarks.csv; returns folder."""
    folder.mkdir(parents=True)
    lines = [HEAD]
    for number in range(dogs * films):
        phantom = draw_phantom(5, number, size)
        name = f"film-{number}.png"
        Image.fromarray(phantom.image).save(folder / name)
        for side, row in zip(IMAGE_SIDES, phantom.landmarks.to_array(), strict=True):
            values = ",".join(f"{value:.3f}" for value in row)
            lines.append(f"{name},{side},{values},dog-{number // films}")
    (folder / "landmarks.csv").write_text("\n".join(lines) + "\n")
    return folder
