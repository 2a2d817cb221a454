"""The fixed words of the text prompt; `prompts.text` makes sentences of them.

"tumor" and "edema" are spelled as in the American notes that Bio_ClinicalBERT was trained on.
"""

from __future__ import annotations

# Task -> (modality, sentence): what the paper delineates, on the images it does so (Sec. 4.1).
TASKS: dict[str, tuple[str, str]] = {
    "orn": ("CT", "Segment the osteoradionecrosis of the jaw in this CT image."),
    "ce": (
        "MR",
        "Segment the cerebral edema after radiotherapy in this T2-weighted or FLAIR MR image.",
    ),
    "crn": (
        "MR",
        "Segment the cerebral radiation necrosis in this contrast-enhanced T1-weighted MR image.",
    ),
}
# Site -> how "The treated tumor was ..." ends. The keys are the vocabulary of the field.
SITES = {
    "head and neck": "in the head and neck region",
    "oropharynx": "in the oropharynx",
    "tonsil": "in the tonsil",
    "base of tongue": "at the base of the tongue",
    "oral cavity": "in the oral cavity",
    "oral tongue": "in the oral part of the tongue",
    "floor of mouth": "in the floor of the mouth",
    "nasopharynx": "in the nasopharynx",
    "hypopharynx": "in the hypopharynx",
    "larynx": "in the larynx",
    "nasal cavity": "in the nasal cavity",
    "paranasal sinus": "in a paranasal sinus",
    "parotid gland": "in the parotid gland",
    "submandibular gland": "in the submandibular gland",
    "thyroid gland": "in the thyroid gland",
    "unknown primary": "of unknown primary site",
    "skull base": "at the skull base",
    "orbit": "in the orbit",
    "pituitary gland": "in the pituitary gland",
    "brain": "in the brain",
    "glioma": "a glioma",
    "meningioma": "a meningioma",
    "brain metastasis": "a brain metastasis",
}
# Technique -> its words; the keys are the vocabulary.
TECHNIQUES = {
    "IMRT": "intensity-modulated radiotherapy (IMRT)",
    "VMAT": "volumetric modulated arc therapy (VMAT)",
    "tomotherapy": "helical tomotherapy",
    "3D-CRT": "three-dimensional conformal radiotherapy (3D-CRT)",
    "2D": "two-dimensional radiotherapy",
    "proton": "proton therapy",
    "carbon ion": "carbon ion therapy",
    "SRS": "stereotactic radiosurgery (SRS)",
    "FSRT": "fractionated stereotactic radiotherapy (FSRT)",
    "SBRT": "stereotactic body radiotherapy (SBRT)",
    "brachytherapy": "brachytherapy",
}
# Field -> value -> sentence, where each value has one.
FIXED: dict[str, dict[object, str]] = {
    "tumour_side": {
        "left": "The treated tumor was on the left side.",
        "right": "The treated tumor was on the right side.",
        "bilateral": "The treated tumor was on both sides.",
        "midline": "The treated tumor was in the midline.",
    },
    "hpv": {
        "positive": "The tumor was HPV-positive.",
        "negative": "The tumor was HPV-negative.",
    },
    "concurrent_chemotherapy": {
        True: "Chemotherapy was given together with radiotherapy.",
        False: "No chemotherapy was given together with radiotherapy.",
    },
    "surgery": {
        True: "The treatment included surgery.",
        False: "The treatment did not include surgery.",
    },
    "dental_extraction": {
        True: "Teeth were extracted.",
        False: "No teeth were extracted.",
    },
    "smoking": {
        True: "The patient has a history of smoking.",
        False: "The patient has no history of smoking.",
        "never": "The patient has never smoked.",
        "former": "The patient is a former smoker.",
        "current": "The patient is a current smoker.",
    },
    "alcohol": {
        True: "The patient has a history of alcohol use.",
        False: "The patient has no history of alcohol use.",
        "never": "The patient has never used alcohol.",
        "former": "The patient used alcohol in the past.",
        "current": "The patient currently uses alcohol.",
    },
    "diabetes": {
        True: "The patient has diabetes.",
        False: "The patient does not have diabetes.",
    },
    "hypertension": {
        True: "The patient has hypertension.",
        False: "The patient does not have hypertension.",
    },
    "bevacizumab": {
        True: "The patient received bevacizumab.",
        False: "The patient did not receive bevacizumab.",
    },
    "steroids": {
        True: "The patient received corticosteroids.",
        False: "The patient did not receive corticosteroids.",
    },
    "side": {
        "left": "The injury is on the left side.",
        "right": "The injury is on the right side.",
        "bilateral": "The injury is on both sides.",
        "midline": "The injury is in the midline.",
    },
}
