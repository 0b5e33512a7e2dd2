#!/usr/bin/env bash
# pytorch-ood 0.4.0 (torch 2.14.1, scikit-learn 1.9.1). detector.Mahalanobis takes fewer images than features without
# a word, and then gives squared distances of which many are negative. The covariance of 200 images of 512 features
# has no inverse; 1e-6 on its diagonal (of the sum, which is not divided by the images) lets torch.linalg.inv return
# one in float32 that is mostly rounding error. Expected: an error, or a distance from a shrunk covariance, as
# Ledoit and Wolf's of scikit-learn, which tells the same pictures apart. Seen:
#   200 images: 41% of distances negative, AUROC 0.6, with Ledoit-Wolf 1.0
#   2000 images: 0% of distances negative, AUROC 1.0, with Ledoit-Wolf 1.0
# Exits with 1 if this changes (rounding may move the first line's numbers by some percent).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 pytorch-ood==0.4.0 scikit-learn==1.9.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON' | tee "$folder/seen"
import torch
from pytorch_ood.detector import Mahalanobis
from pytorch_ood.metrics import AUROC
from sklearn.covariance import LedoitWolf

WIDTH = 512  # features, as many as those of ResNet-18


def draw(count, mean, seed):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) + mean


for count in (200, 2000):
    labels = torch.arange(count) % 2
    train = draw(count, 2 * labels[:, None], 0)
    known, unknown = draw(500, 0, 1), draw(500, 0.5, 2)  # unknown ones lie between both classes
    truth = torch.cat([torch.zeros(500), -torch.ones(500)])
    detector = Mahalanobis(None).fit_features(train, labels)
    scores = detector.predict_features(torch.cat([known, unknown]))
    means = torch.stack([train[labels == k].mean(dim=0) for k in (0, 1)])
    precision = torch.tensor(LedoitWolf().fit(train - means[labels]).precision_).float()
    apart = torch.cat([known, unknown])[:, None] - means
    shrunk = torch.einsum("nkf,fg,nkg->nk", apart, precision, apart).min(dim=1).values
    areas = [AUROC().update(one, truth).compute()["AUROC"] for one in (scores, shrunk)]
    print(f"{count} images: {(scores < 0).float().mean():.0%} of distances negative,",
          f"AUROC {areas[0]:.1f}, with Ledoit-Wolf {areas[1]:.1f}")
PYTHON
if grep -qE '^200 images: [3-5][0-9]% of distances negative, AUROC 0.[4-7], with Ledoit-Wolf 1.0' "$folder/seen"; then
    echo "as seen"
else
    echo "changed"
    exit 1
fi
