def write(root, save, text):
    for number in (1, 2, 23):
        for track in range(5):
            for frame in range(2):
                name = f"{track:012d}_{frame:05d}.png"
                save(root / "fish4knowledge" / "fish_image" / f"fish_{number:02d}" / f"fish_{name}")
                save(root / "fish4knowledge" / "mask_image" / f"mask_{number:02d}" / f"mask_{name}")
