"""Gene symbols of the synthetic expression panel: markers of cell types, programmes, and fillers.

Symbols are real (HGNC), lists come from general knowledge; effects are planted by ``omics.py``,
not fitted.
"""

#: Markers of each cell type. Goblet cells are counted as part of the tumour.
MARKERS: dict[str, tuple[str, ...]] = {
    name: tuple(genes.split())
    for name, genes in {
        "tumour": (
            "EPCAM KRT8 KRT18 KRT19 CDH1 CLDN3 CLDN4 CLDN7 TSPAN8 CEACAM5 CEACAM6 ELF3 LCN2 AGR2 "
            "SPINT2 PIGR LGALS4 PHGR1 TACSTD2 ESRP1"
        ),
        "goblet": "MUC2 TFF3 SPINK4 FCGBP CLCA1 ZG16 REG4 ITLN1 ATOH1 RETNLB",
        "fibroblast": (
            "COL1A1 COL1A2 COL3A1 DCN LUM PDGFRA PDGFRB THY1 FAP COL6A1 COL6A2 COL6A3 MMP2 BGN C1R "
            "C1S SFRP2 CCDC80 DPT MFAP5"
        ),
        "endothelial": "PECAM1 VWF CDH5 KDR CLDN5 ESAM EGFL7 PLVAP ENG RAMP2 TIE1 EMCN",
        "cd8": "CD8A CD8B GZMK GZMH PRF1 CCL5 EOMES TRGC2 CRTAM KLRG1",
        "cd4": "CD4 IL7R CCR7 LEF1 TCF7 CD40LG ICOS CTLA4 FOXP3 MAL",
        "b": "MS4A1 CD19 CD79A CD79B PAX5 BANK1 BLK FCER2 CD22 TCL1A VPREB3",
        "plasma": "MZB1 JCHAIN SDC1 XBP1 DERL3 TNFRSF17 PRDX4 FKBP11 SSR4 IGHG1 IGHA1 IGKC",
        "nk": "NCAM1 KLRD1 KLRF1 NCR1 GNLY FGFBP2 KLRC1 XCL1 XCL2",
        "macrophage": "CD68 CD163 CSF1R MSR1 MRC1 C1QA C1QB C1QC APOE TREM2 MARCO FCGR3A CD14 AIF1 MS4A7",
        "neutrophil": "CSF3R FCGR3B CXCR1 CXCR2 S100A8 S100A9 S100A12 G0S2 MNDA",
        "mast": "TPSAB1 TPSB2 CPA3 KIT MS4A2 HDC HPGDS",
    }.items()
}

CELL_TYPES = tuple(MARKERS)
LEUKOCYTES = CELL_TYPES[4:]

#: Programmes that a tumour (IFNG and EMT: any cell) turns up and down.
PROGRAMMES: dict[str, tuple[str, ...]] = {
    name: tuple(genes.split())
    for name, genes in {
        "PROLIF": (
            "MKI67 TOP2A PCNA MCM2 MCM3 MCM4 MCM5 MCM6 MCM7 CCNB1 CCNB2 CCNA2 CDK1 BUB1 BUB1B AURKA "
            "AURKB PLK1 TYMS RRM2 TPX2 UBE2C BIRC5 CDC20 CENPF NUSAP1 KIF11 KIF20A FOXM1"
        ),
        "MSI_DOWN": "MLH1 EPM2AIP1 TNNC2 SMCR8 DDX27 AXIN2 TGFBR2 SHROOM4",
        "MSI_UP": "RPL22L1 HSPA4L DUSP4 LY6G6D MICB KYNU SLC4A4 TRIM7 VNN2 ANXA10",
        "HRD": "RAD51 RAD51AP1 BRCA1 BRCA2 BARD1 EXO1 FANCI FANCA FANCD2 XRCC2 RAD54L POLQ BLM",
        "IFNG": (
            "STAT1 IRF1 CXCL9 CXCL10 CXCL11 IDO1 GBP1 GBP2 GBP4 GBP5 TAP1 PSMB8 PSMB9 HLA-A HLA-B "
            "HLA-C HLA-E CIITA CD274 LAG3"
        ),
        "EMT": (
            "VIM ZEB1 ZEB2 SNAI2 TWIST1 FN1 SPARC TGFBI LOXL2 INHBA POSTN COL5A2 COL11A1 THBS2 TNC "
            "CDH2 SERPINE1 GREM1"
        ),
        "HYPOXIA": "CA9 VEGFA ADM NDRG1 LDHA PGK1 ENO1 ALDOA SLC2A1 BNIP3 P4HA1 ANKRD37 EGLN3 PDK1",
        "WNT": "LGR5 ASCL2 RNF43 ZNRF3 NKD1 NOTUM SP5 TNFRSF19 LRP4 ROR1 SOX4 EPHB2 MYC CCND1",
        "DIFF": "CDX2 CDX1 VIL1 KRT20 FABP1 SLC26A3 CA1 CA2 CA4 CEACAM7 GUCA2A GUCA2B AQP8 MS4A12 ANPEP",
    }.items()
}

#: Families of fillers: a stem and the endings that exist.
_FAMILIES = (
    ("RPL", "3 4 5 6 7 8 9 10 11 12 13 14 15 18 19 21 22 23 24 26 27 28 29 30 31 32 34 35 36 37 38 39 41"),
    ("RPS", "2 3 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 23 24 25 26 27 28 29"),
    ("PSMA", "1 2 3 4 5 6 7"),
    ("PSMB", "1 2 3 4 5 6 7"),
    ("PSMC", "1 2 3 4 5 6"),
    ("PSMD", "1 2 3 4 5 6 7 8 9 10 11 12 13 14"),
    ("NDUFA", "1 2 3 5 6 7 8 9 10 11 12 13"),
    ("NDUFB", "1 2 3 4 5 6 7 8 9 10 11"),
    ("NDUFS", "1 2 3 4 5 6 7 8"),
    ("NDUFV", "1 2 3"),
    ("EIF3", "A B C D E F G H I J K L M"),
    ("EIF4", "A1 A2 A3 B E E2 G1 G2 G3 H EBP1 EBP2"),
    ("SF3", "A1 A2 A3 B1 B2 B3 B4 B5"),
    ("SRSF", "1 2 3 4 5 6 7 9 10 11"),
    ("HNRNP", "A0 A1 A3 C D F H1 H2 H3 K L M R U"),
    ("POLR2", "A B C D E F G H I J K L"),
    ("TAF", "1 2 3 4 5 6 7 8 10 11 12 13"),
    ("MED", "1 4 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31"),
    ("CCT", "2 3 4 5 7 8"),
    ("PFDN", "1 2 4 5 6"),
    ("EXOSC", "1 2 3 4 5 6 7 8 9 10"),
    (
        "MRPL",
        "1 2 3 4 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 27 28 30 32 33 34 35 36 37 38 39 40 "
        "41 42 43 44 45 46 47 48 49 50 51 52 53 54 55",
    ),
    ("MRPS", "2 5 6 7 9 10 11 12 14 15 16 17 18A 18B 18C 21 22 23 24 25 26 27 28 30 31 33 34 35"),
    ("VPS", "4A 4B 8 11 16 18 25 26A 26B 28 29 33A 33B 35 36 37A 37B 37C 39 41 45 52 53 54"),
    ("SNX", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 24 25 27 29"),
    (
        "RAB",
        "1A 1B 2A 2B 3A 3B 3D 4A 4B 5A 5B 5C 6A 7A 8A 8B 9A 10 11A 11B 12 13 14 18 21 22A 23 24 27A "
        "27B 28 30 31 32 33B 34 35",
    ),
    (
        "USP",
        "1 2 3 4 5 7 8 9X 10 11 12 13 14 15 16 18 19 20 21 22 24 25 28 30 31 32 33 34 36 37 38 39 40 "
        "42 43 45 46 47 48",
    ),
    ("UBE2", "A B D1 D2 D3 D4 E1 E2 E3 F G1 G2 H I J1 J2 K L3 L6 M N O R2 Z"),
    (
        "TRIM",
        "2 3 4 5 8 9 11 13 14 16 21 22 23 24 25 26 27 28 32 33 35 37 38 39 41 44 45 46 47 52 56 58 59 "
        "62 65 66 68",
    ),
    (
        "SLC25A",
        "1 3 4 5 6 10 11 12 13 14 15 16 17 19 20 22 23 24 25 27 28 29 30 32 33 36 37 38 39 40 42 43 44 46",
    ),
    ("SLC35A", "1 2 3 4 5"),
    ("SLC39A", "1 2 3 4 6 7 8 9 10 11 13 14"),
    (
        "TMEM",
        "8B 9 14A 14B 14C 17 18 19 25 30A 33 35B 37 38A 38B 39A 39B 41A 41B 42 43 45A 45B 47 50A 50B "
        "51 52 53 54 59 60 62 63A 63B 64 65 67 68 69 70 79 80 86A 86B 87A 87B 88 91 92 94 95 97 98 99 "
        "100 101 102",
    ),
    ("ANKRD", "1 2 6 9 10 11 12 13A 16 17 22 23 24 27 28 29 39 40 42 44 46 49 50 52 54"),
    ("KLHL", "2 3 4 5 7 8 9 11 12 13 14 15 17 18 20 21 22 23 24 25 26 28 29 31 32 36"),
    ("FBXO", "2 3 4 5 6 7 8 9 10 11 15 16 17 21 22 25 27 28 30 31 32 33 34 36 38 40 41 42 44 45 46"),
    ("DNAJC", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 21 22 24 25 27 30"),
    ("ARHGAP", "1 4 5 6 9 10 11A 12 15 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 35"),
    (
        "ZNF",
        "3 7 10 12 14 16 17 18 19 20 22 23 24 25 26 28 30 32 34 35 37A 41 43 44 45 69 70 71 74 75A 76 "
        "77 79 80 81 83 84 85 90 91 92 93 100 101 106 107 112 114 117 121 124 131 132 133 134 135 136 "
        "138 140 141 142 143 146 148 154 155 157 160 165 169 174 175 177 180 181 182 184 185 189 195 "
        "197 200 202 205 207 208 211 212 213 214 215 217 219 221 222 223 224 225 226 227 229 230 232 "
        "233 234 235 236 239 248 250 251 253 254 256 257 260 263 264 266 267 268 273 274 276 277 280A "
        "280B 280C 281 282 283 284 286 287 292 295 296 300 302 304 317 318 319 320 322 324 326 329 "
        "330 331 333 334 335 337 341 343 345 346 347 350 354A 354B 354C 358 362 365 366 367 382 383 "
        "384 385A 385B 391 394 395 396 397 398 404 407 408 410 414 415 416 418 419 420 423",
    ),
)

HOUSEKEEPING_STEMS = ("RPL", "RPS", "PSM", "NDUF", "EIF", "POLR2")

PANEL_SIZE = 1130


def _panel() -> tuple[str, ...]:
    planted = [gene for group in (MARKERS, PROGRAMMES) for genes in group.values() for gene in genes]
    fillers = [stem + ending for stem, endings in _FAMILIES for ending in endings.split()]
    return tuple(dict.fromkeys(planted + fillers))[:PANEL_SIZE]


#: All genes of the panel: markers, programme genes, fillers.
PANEL = _panel()
