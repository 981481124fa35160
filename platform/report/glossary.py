"""Terms of the report in a sentence each; a page explains those that it uses."""

import re

TERMS = {
    "AUPRC": "Area under the precision-recall curve. Chance is the share of positive patients.",
    "AUROC": "Probability that a patient with the finding gets a higher score than one without; 0.5 is chance.",
    "balanced accuracy": "Mean of sensitivity and specificity, or of the shares of each class that are found.",
    "bootstrap": "Repeating an estimate on patients drawn with replacement, to see how much it depends on them.",
    "Brier": "Mean squared difference between a predicted probability and what happened; lower is better.",
    "calibration": "Whether predicted probabilities are as frequent as they say.",
    "CI": "Confidence interval: in repeated studies such intervals contain the true value at the stated rate.",
    "cohort": "Patients who were collected together, such as those of one hospital or one public project.",
    "decision curve": "Net benefit of acting on a prediction, over the threshold at which one would act.",
    "ensemble": "Several models whose scores are averaged.",
    "external": "Patients of other cohorts, none of whom took part in training.",
    "federated": "Training in which patients' data stay at their sites and only updates of the model travel.",
    "fold": "A division of the patients: those of its test part are predicted by a model that has not seen them.",
    "Harrell C": "Share of comparable pairs of patients whose order of risk is right; 0.5 is chance.",
    "hazard ratio": "How many times more often the event happens per unit of the variable, at any time.",
    "inner validation": "Patients of the training part who choose the epoch and the threshold, and are not tested.",
    "Kaplan-Meier": "Share of patients without the event over time, allowing for those lost to follow-up.",
    "leakage": "Knowledge of test patients that reaches training, which makes results too good.",
    "log-rank": "Test of whether two survival curves differ.",
    "NPV": "Share of patients called negative who are negative; it depends on how frequent the finding is.",
    "Pearson r": "Linear correlation from −1 to 1; 0 is none.",
    "PPV": "Share of patients called positive who are positive; it depends on how frequent the finding is.",
    "R²": "Share of the variance that predictions explain; predicting the mean has about 0, and worse is negative.",
    "sensitivity": "Share of patients with the finding who are called positive.",
    "specificity": "Share of patients without the finding who are called negative.",
    "tile": "A square of a slide; the model sees a slide as its tiles.",
    "Uno C": "Concordance weighted so that it does not depend on the pattern of censoring.",
    "µm/px": "Micrometres per pixel, the resolution of a slide; 0.5 is about a 20x objective.",
}  # fmt: skip


def terms_in(text: str) -> dict[str, str]:
    """The terms that occur in a text, in the order of the alphabet."""
    return {
        term: meaning
        for term, meaning in TERMS.items()
        if re.search(
            rf"(?<![\w]){re.escape(term)}s?(?![\w])", text, 0 if term[0].isupper() else re.IGNORECASE
        )
    }
