"""deidentify: what identifies a person stays behind when images come in.

    keys        the site's secret, and what is made with it: pseudonyms, new UIDs, a patient's shift of dates
    headers     DICOM: PS3.15's basic profile (the table of dicom-anonymizer), then a closed list of what may stay
    words       free text is rebuilt from words on a list; whatever else it holds is gone
    sidecars    what a converter says beside an image: numbers and words on a list
    nifti       an image's header, written anew: geometry, nothing else
    burned_in   text inside the picture cannot be removed here, but it can be warned about
    deface      the face goes, the brain never does
    changes     before and after, for the custodian to read
    leaks       the last gate: nothing that was taken away may be found anywhere in what was written
    links       which case is which patient: the custodian's own list, never with the data

Every rule names what may stay, never what must go: an attribute, a word or a field that nobody thought of is gone.
"""
