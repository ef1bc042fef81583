"""What is implausible in the numbers that the paper prints; each can be checked in `paper.json`."""

__all__ = ["DOUBTS"]

DOUBTS = (
    "Table I is about MNIST, but its adversarially trained networks reach 86 % clean accuracy and 49 % under "
    "AutoAttack. At the usual eps of 0.3 AutoAttack's authors list 98.5 % and 88.5 % for plain adversarial training, "
    "99.5 % and 92.8 % for TRADES. The text leaves out eps.",
    "The row SOAR of ResNet18 has 87.95 % clean and 56.06 % under PGD both in Table I (MNIST) and in Table II "
    "(CIFAR-10).",
    "In Table II that row has 55.70 % under FGSM and 56.06 % under PGD with 20 steps: one step would beat twenty.",
    "On the PGD-trained ResNet18 of Table I ASOD leaves 20.20 % and SOAE 30.85 % where AutoAttack leaves 49.10 %. ASOD "
    "is PGD on noisy images; at an equal radius neither has a way to be 18 to 29 points stronger than AutoAttack.",
    "The text says that SOAE beats all other attacks but on SOAR. In Table II the network trained with SOAT keeps "
    "45.98 % under AutoAttack and 49.27 % under SOAE (ResNet18), and 47.53 % and 51.46 % (WideResNet).",
    "The text has the accuracy of the standard ResNet18 on CIFAR-10 drop below 16 % under SOAE for a good threshold; "
    "Table II has 0.08 % for the same pair.",
    "Table IV has m of 17 to 243. For one image and a ReLU network with C classes the Hessian of the cross-entropy has "
    "rank C - 1 = 9 at most, and so has the Krylov space.",
    "Table V has PSNR of 71 to 82 dB. Sign noise of 8/255 has 30.1 dB, of 0.3 10.5 dB. With a peak of 255 for pixels "
    "in [0, 1] everything rises by 48.1 dB; then the values would fit radii near 12/255, on MNIST too.",
    "Table V has PGD below FGSM in PSNR on MNIST and CIFAR-10. FGSM fills the ball, and nothing in it is farther away: "
    "at an equal radius, but for clipping, this cannot be.",
    "The step that the derivation gives, -H^-1 g, is the minimum of the quadratic model where H is positive "
    "semi-definite, as it is on ReLU networks: followed literally it lowers the loss.",
)
