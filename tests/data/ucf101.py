def write(root, save, text):
    top = root / "ucf101"
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "BabyCrawling": "Baby_Crawling", "YoYo": "Yo_Yo"}
    text(top / "ucfTrainTestlist" / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(actions, 1)))
    for file, scenes in (("trainlist01", range(8, 14)), ("testlist01", range(1, 3))):
        rows = []
        for label, (name, folder) in enumerate(actions.items(), 1):
            for scene in scenes:
                video = f"v_{name}_g{scene:02d}_c01"
                save(top / "UCF-101-midframes" / folder / f"{video}.jpg")
                rows.append(f"{name}/{video}.avi" + (f" {label}" if file == "trainlist01" else ""))
        text(top / "ucfTrainTestlist" / f"{file}.txt", *rows)
