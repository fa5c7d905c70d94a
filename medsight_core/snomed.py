"""The table behind `terminology`: SNOMED CT codes of findings, and the words for them. Data only.

Codes and meanings are those of DICOM PS3.16 as pydicom carries it; `NOT_IN_PYDICOM` lists the ones it lacks, each
confirmed by another published source. A code that could not be confirmed is not here: its words have a broader one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# One row per concept: code, meaning as PS3.16 spells it, words for it (the first is the usual one).
STRUCTURES: Final = """
23451007 Adrenal gland = adrenal gland|adrenal|suprarenal gland
89187006 Airway structure = airway
15825003 Aorta = aorta|aortic
7832008 Abdominal aorta = abdominal aorta
54247002 Ascending aorta = ascending aorta
113262008 Thoracic aorta = thoracic aorta
281130003 Descending aorta = descending aorta
66754008 Appendix = appendix
59652004 Atrium = atrium|heart atrium
82471001 Left atrium = left atrium|left heart atrium|heart atrium left
73829009 Right atrium = right atrium|right heart atrium|heart atrium right
33626005 Left auricular appendage = left atrial appendage|atrial appendage left
59820001 Blood vessel = blood vessel|vessel|vasculature
12738006 Brain = brain|cerebral
119238007 Brain Stem = brain stem|brainstem
76752008 Breast = breast
12691009 Brachiocephalic trunk = brachiocephalic trunk
8887007 Brachiocephalic vein = brachiocephalic vein
955009 Bronchus = bronchus|bronchi
69105007 Carotid Artery = carotid artery
11000004 Caudate nucleus = caudate nucleus
113305005 Cerebellum = cerebellum|cerebellar
71252005 Cervix = cervix|uterine cervix
51299004 Clavicle = clavicle|clavicula|collarbone
71854001 Colon = colon|large bowel|large intestine|colonic
32062004 Common carotid artery = common carotid artery
73634005 Common iliac artery = common iliac artery|iliac artery
46027005 Common iliac vein = common iliac vein|iliac vein|iliac vena
41801008 Coronary artery = coronary artery
88442005 Corpus callosum = corpus callosum
50016007 Costal Cartilage = costal cartilage
244849004 Deep muscle of back = autochthon|deep muscle of back
5798000 Diaphragm = diaphragm
38848004 Duodenum = duodenum|duodenal
32849002 Esophagus = esophagus|esophageal
81745001 Eye = eye
89545001 Face = face
71341001 Femur = femur
54527006 Fetal head = fetal head
87342007 Fibula = fibula
35918002 Fourth Ventricle = fourth ventricle
83251001 Frontal lobe = frontal lobe
28231008 Gallbladder = gallbladder|gall bladder
78333006 Gluteus medius muscle = gluteus medius
75297007 Gluteus minimus muscle = gluteus minimus
80891009 Heart = heart|cardiac
76015000 Hepatic artery = hepatic artery
8993003 Hepatic vein = hepatic vein
29836001 Hip = hip|hip bone
5366008 Hippocampus = hippocampus|hippocampi
85050009 Humerus = humerus
68455001 Iliopsoas muscle = iliopsoas
64131007 Inferior vena cava = inferior vena cava|ivc|postcava
64033007 Kidney = kidney|renal
66720007 Lateral Ventricle = lateral ventricle
78076003 Lens = lens
10200004 Liver = liver|hepatic
39607008 Lung = lung|pulmonary
90572001 Lower lobe of lung = lower lobe|lung lower lobe|lower lung lobe|lower lobe of lung
72481006 Middle lobe of right lung = middle lobe|right middle lobe|lung middle lobe|middle lobe of right lung
45653009 Upper lobe of lung = upper lobe|lung upper lobe|upper lung lobe|upper lobe of lung
59441001 Lymph node = lymph node
91609006 Mandible = mandible
72410000 Mediastinum = mediastinum|mediastinal|cardiomediastinum
74281007 Myocardium = myocardium|heart myocardium|myocardial
49848007 Left ventricle myocardium = left ventricle myocardium|left ventricular myocardium
84640000 Nucleus = nucleus|nuclei|cell nucleus|cell nuclei
31065004 Occipital lobe = occipital lobe
18234004 Optic nerve = optic nerve
81016008 Optic nerve head = optic nerve head|optic disc|optic disk
15497006 Ovary = ovary|ovarian
15776009 Pancreas = pancreas|pancreatic
16630005 Parietal lobe = parietal lobe
45289007 Parotid gland = parotid gland|parotid
64234005 Patella = patella
118645006 Pelvis = pelvis|bony pelvis
76848001 Pericardium = pericardium|pericardial
56329008 Pituitary = pituitary|pituitary gland
78067005 Placenta = placenta
3120008 Pleura = pleura|pleural
32764006 Portal vein = portal vein
110765007 Portal vein and splenic vein = portal and splenic vein|portal vein and splenic vein
41216001 Prostate = prostate|prostatic
82561000 Symphysis pubis = pubic symphysis|public symphysis|symphysis pubis
81040000 Pulmonary artery = pulmonary artery
122972007 Pulmonary vein = pulmonary vein
89278009 Putamen = putamen
62413002 Radius = radius
34402009 Rectum = rectum|rectal
5665001 Retina = retina|retinal
113197003 Rib = rib
54735007 Sacrum = sacrum
385294005 Salivary gland = salivary gland
79601000 Scapula = scapula
60184004 Sigmoid colon = sigmoid colon
127954009 Skeletal muscle = skeletal muscle
39937001 Skin = skin|cutaneous
89546000 Skull = skull|cranium
30315005 Small intestine = small intestine|small bowel
2748008 Spinal cord = spinal cord
78961009 Spleen = spleen|splenic
22083002 Splenic artery = splenic artery
35819009 Splenic vein = splenic vein
56873002 Sternum = sternum
69695003 Stomach = stomach|gastric
36765005 Subclavian artery = subclavian artery
48345005 Superior vena cava = superior vena cava|svc
78277001 Temporal lobe = temporal lobe
40689003 Testis = testis|testicle
42695009 Thalamus = thalamus
49841001 Third ventricle = third ventricle
9875009 Thymus = thymus
69748006 Thyroid = thyroid|thyroid gland
12611008 Tibia = tibia
38199008 Tooth = tooth|teeth
44567001 Trachea = trachea
23416004 Ulna = ulna
87953007 Ureter = ureter
89837001 Bladder = bladder|urinary bladder
35039007 Uterus = uterus|uterine
21814001 Ventricle = heart ventricle|cardiac ventricle
87878005 Left ventricle = left ventricle|left heart ventricle|heart ventricle left
53085002 Right ventricle = right ventricle|right heart ventricle|heart ventricle right
35764002 Brain ventricle = brain ventricle|cerebral ventricle
51282000 Vertebra = vertebra|vertebrae
65985001 S1 vertebra = s1 vertebra|vertebra s1|vertebrae s1
816094009 Chest = chest|thorax|thoracic
818981001 Abdomen = abdomen|abdominal
"""
# Numbered bones, from the first on.
VERTEBRAE: Final = (
    ("c", "14806007 39976000 113205007 5329002 36978003 36054005 87391001"),
    (
        "t",
        "64864005 53733008 1626008 73071006 56401006 45296009 62487009 11068009 82687006 7610001 12989004 23215003",
    ),
    ("l", "66794005 14293000 36470004 11994002 49668003"),
)
RIBS: Final = (
    "48535007 First|78247007 Second|25888004 Third|25523003 Fourth|15339008 Fifth|59558009 Sixth|24915002 Seventh|"
    "5953002 Eighth|22565002 Ninth|77644006 Tenth|58830002 Eleventh|43993008 Twelfth"
)
TISSUES: Final = """
85756007 Tissue = tissue
21793004 Connective tissue = connective tissue|connective tissue cell
55603005 Fat = fat|adipose tissue|torso fat
67769002 Subcutaneous fatty tissue = subcutaneous fat
389081007 Gray Matter = gray matter
389080008 White Matter = white matter
12402003 Scar tissue = scar|scar tissue
"""
SUBSTANCES: Final = """
65216001 Cerebrospinal Fluid = cerebrospinal fluid|csf
409615008 Ascitic fluid = ascites|ascitic fluid
"""
OBJECTS: Final = """
40388003 Implant = implant|prosthesis
65818007 Stent = stent
26412008 Endotracheal tube = endotracheal tube
14106009 Cardiac pacemaker = pacemaker|cardiac pacemaker
"""
# As above; "@" names the region it is always in, "+" a modifier it always has, "~" a code broader than its words.
ABNORMAL: Final = """
44132006 Abscess = abscess
1187332001 Adenocarcinoma = adenocarcinoma
1187375007 Adenoma = adenoma
85659009 Aneurysm = aneurysm
46621007 Atelectasis @lung = atelectasis
75753009 Blood clot = blood clot|clot
1187425009 Carcinoma = carcinoma
95436008 Lung consolidation @lung = consolidation|lung consolidation|pulmonary consolidation
367643001 Cyst = cyst
32693004 Demyelination ~ @brain = multiple sclerosis lesion|ms lesion|demyelinating lesion|demyelination
79654002 Edema = edema|swelling
55584005 Embolus = embolus|embolism
1163375002 Glioblastoma @brain = glioblastoma
1217294009 Ground glass lung opacity @lung = ground glass opacity|ground glass lung opacity|ggo
35566002 Hematoma = hematoma
50960005 Hemorrhage = hemorrhage|bleeding|bleed
409774005 Inflammation = inflammation
409774005 Inflammation ~ = inflammatory cell|infection
409774005 Inflammation ~ @lung +840539006 COVID-19 = covid 19 infection|covid infection|covid 19 pneumonia
409774005 Inflammation ~ @lung = pneumonia|viral pneumonia|bacterial pneumonia|pneumonitis
52988006 Lesion = lesion
52988006 Lesion ~ = abnormality|finding|opacity|infiltrate|hypodensity|hyperdensity
4147007 Mass = mass
6574001 Necrosis = necrosis
108369006 Neoplasm = neoplasm|tumor|neoplastic lesion
108369006 Neoplasm ~ = neoplastic cell|neoplastic polyp|enhancing tumor|non enhancing tumor|tumor core|whole tumor
108369006 Neoplasm ~ @brain = glioma|lower grade glioma|low grade glioma|high grade glioma|lgg
108369006 Neoplasm ~ +21594007 Malignant = cancer|malignancy
108369006 Neoplasm ~ @skin +21594007 Malignant = melanoma
14799000 Neoplasm, Secondary = metastasis|metastases
1163403006 Pigmented nevus ~ @skin = nevus|common nevus|mole|melanocytic nevus
1163403006 Pigmented nevus @skin = pigmented nevus
1163403006 Pigmented nevus ~ @skin +112231000 Atypical = atypical nevus|dysplastic nevus
27925004 Nodule = nodule
60046008 Pleural effusion @pleura = pleural effusion
36118008 Pneumothorax @pleura = pneumothorax
41329004 Polyp = polyp
41329004 Polyp ~ = non neoplastic polyp
396339007 Thrombus = thrombus
56208002 Ulcer = ulcer
"""

NOT_IN_PYDICOM: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(
        (
            "110765007",
            "244849004",
            "65985001",
            "67769002",
            "68455001",
            "75297007",
            "78333006",
            "48535007",
            "78247007",
            "25888004",
            "25523003",
            "15339008",
            "59558009",
            "24915002",
            "5953002",
            "22565002",
            "77644006",
            "58830002",
            "43993008",
            "840539006",
        ),
        "TotalSegmentator's published SNOMED mapping",
    )
    | dict.fromkeys(("41329004", "1163403006"), "FHIR value sets of morphologic abnormalities")
    | dict.fromkeys(("32693004", "54527006"), "SNOMED International's own authoring guide and templates")
    | dict.fromkeys(("74281007", "1217294009", "112231000", "46621007", "95436008"), "several national FHIR profiles")
)
"""SNOMED CT codes used here that pydicom's copy of PS3.16 does not list, with where each one is published."""
