"""Every config key of this project, with its default, unit and range."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_yolof_config(cfg: CfgNode) -> None:
    """Add every key of this project to ``cfg``; no existing key is touched.

    The values of ``MODEL.YOLOF`` are those of the published R50-C5 model. Each slot has a ``NAME``,
    and each part a node that only it reads. What can be derived is no key: channels and strides
    come from the backbone, the number of anchors from ``MODEL.ANCHOR_GENERATOR``, the number of
    blocks from the dilations.
    """
    # Files, folders or installed modules with parts of your own, imported before the model is
    # built; one that defines add_config(cfg) may add keys of its own there.
    cfg.PLUGINS = ()

    yolof = cfg.MODEL.YOLOF = CfgNode()
    yolof.NUM_CLASSES = 80  # set from the json when DATASETS.TRAIN_JSON or TEST_JSON is given

    # NORM is "BN", "SyncBN", "GN", "FrozenBN" or "" for none, here and below.
    yolof.ENCODER = CfgNode({"NAME": "DilatedEncoder"})
    yolof.ENCODER.DILATED = CfgNode(
        {
            "NUM_CHANNELS": 512,
            "MID_CHANNELS": 128,
            "DILATIONS": [2, 4, 6, 8],  # one residual block each, >= 1
            "SHORTCUT": True,  # the sum around each block; False leaves a plain chain
            "NORM": "BN",
            "ACTIVATION": "ReLU",  # or "LeakyReLU", slope 0.1
        }
    )
    yolof.ENCODER.PROJECTOR = CfgNode({"NUM_CHANNELS": 512, "NORM": "BN"})
    yolof.ENCODER.ASPP = CfgNode(
        {
            "NUM_CHANNELS": 256,  # of each branch and of the output
            "DILATIONS": [2, 4, 6],  # exactly three, the 3x3 branches beside 1x1 and pooling
            "NORM": "BN",
            "ACTIVATION": "ReLU",
        }
    )
    yolof.ENCODER.TRANSFORMER = CfgNode(
        {
            "NUM_CHANNELS": 256,  # divisible by 4 and by NUM_HEADS
            "NUM_LAYERS": 6,
            "NUM_HEADS": 8,
            "FEEDFORWARD_CHANNELS": 2048,
            "DROPOUT": 0.1,
        }
    )

    towers = {
        "NUM_SHARED_CONVS": 0,  # 3x3 convolutions before classification and regression part
        "NUM_CLS_CONVS": 2,
        "NUM_REG_CONVS": 4,
        "NORM": "BN",
        "ACTIVATION": "ReLU",
        "PRIOR_PROB": 0.01,  # score of each class before training, in (0, 1)
    }
    yolof.DECODER = CfgNode({"NAME": "ImplicitObjectnessDecoder"})
    yolof.DECODER.IMPLICIT_OBJECTNESS = CfgNode(dict(towers))
    yolof.DECODER.PLAIN = CfgNode(dict(towers))

    yolof.MATCHER = CfgNode({"NAME": "UniformMatcher"})
    yolof.MATCHER.UNIFORM = CfgNode(
        {
            "TOPK": 4,  # nearest of each kind of candidate, per ground truth; >= 1
            "CANDIDATES": ["predictions", "anchors"],  # or one of the two
            "POS_IGNORE_IOU": 0.15,  # a pair is dropped below this IoU of anchor and ground truth
            "NEG_IGNORE_IOU": 0.7,  # background is ignored above this IoU with any ground truth
        }
    )
    yolof.MATCHER.MAX_IOU = CfgNode(
        {
            "NEG_IOU": 0.4,  # background below it, ignored from it to POS_IOU
            "POS_IOU": 0.5,
            "ALLOW_LOW_QUALITY": True,  # a ground truth's best anchors are positive at any IoU
        }
    )
    yolof.MATCHER.TOPK_IOU = CfgNode({"TOPK": 4, "POS_IGNORE_IOU": 0.15, "NEG_IGNORE_IOU": 0.7})
    yolof.MATCHER.ATSS = CfgNode({"TOPK": 9})  # nearest cells per ground truth, all anchors of each
    yolof.MATCHER.HUNGARIAN = CfgNode({"CLS_WEIGHT": 2.0, "L1_WEIGHT": 5.0, "GIOU_WEIGHT": 2.0})
    yolof.MATCHER.SIMOTA = CfgNode(
        {
            "CENTER_RADIUS": 2.5,  # cells
            "CANDIDATE_TOPK": 10,  # highest IoUs whose sum is the number of positives
            "CLS_WEIGHT": 1.0,
            "IOU_WEIGHT": 3.0,
        }
    )

    yolof.LOSS = CfgNode({"NAME": "FocalBoxLoss"})
    yolof.LOSS.FOCAL_BOX = CfgNode(
        {
            "FOCAL_ALPHA": 0.25,
            "FOCAL_GAMMA": 2.0,
            "BBOX_REG_LOSS_TYPE": "giou",  # or "iou", "diou", "ciou", "l1" (of the deltas)
            "CLS_LOSS_WEIGHT": 1.0,
            "BBOX_REG_LOSS_WEIGHT": 1.0,
        }
    )

    # Scaling of (dx, dy, dw, dh); and how far, in pixels, a box's centre may lie from its anchor's.
    yolof.BOX_TRANSFORM = CfgNode({"WEIGHTS": (1.0, 1.0, 1.0, 1.0), "CENTER_CLAMP": 32})

    yolof.SCORE_THRESH_TEST = 0.05
    yolof.TOPK_CANDIDATES_TEST = 1000  # highest scores that enter the suppression
    yolof.NMS_THRESH_TEST = 0.6

    _add_baseline_config(cfg)
    _add_input_config(cfg)

    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0  # learning rate of the backbone, relative to BASE_LR
    cfg.SOLVER.AMP.PRECISION = "fp16"  # or "bf16", without loss scaling; see SOLVER.AMP.ENABLED
    # PyTorch's deterministic algorithms, so that two runs on GPUs are equal to the last bit.
    # Operators that have none are named in warnings.
    cfg.SOLVER.DETERMINISTIC = False
    cfg.SOLVER.RESUME_CHANGED = False  # resume from a checkpoint that another config has trained
    cfg.TEST.BEST_METRIC = "bbox/AP"  # its highest value is kept as model_best.pth; "" is off
    # Ground truth beside predictions, of the first NUM_IMAGES images (0 is off): every PERIOD
    # iterations, where an evaluation falls on them, and after the last evaluation.
    cfg.TEST.PICTURES = CfgNode({"NUM_IMAGES": 4, "PERIOD": 0})
    # Logging to Weights & Biases. Its own environment variables (WANDB_MODE, ...) count too.
    cfg.WANDB = CfgNode(
        {
            "ENABLED": False,
            "PROJECT": "yolof_d2",  # or WANDB_PROJECT
            "ENTITY": "",  # user or team, or WANDB_ENTITY; "" is the key's own
            "TAGS": (),  # beside WANDB_TAGS
            "LOG_MODEL": False,  # upload the final weights as an artifact
        }
    )


def _add_baseline_config(cfg: CfgNode) -> None:
    # CSPDarkNet-53; MODEL.BACKBONE.FREEZE_AT counts as in ResNets: 1 the stem, 2 also res1, ...
    cfg.MODEL.CSPDARKNET = CfgNode(
        {
            "OUT_FEATURES": ["res5"],
            "STEM_OUT_CHANNELS": 32,  # doubled by each stage
            "NORM": "BN",
            "RES5_DILATION": 1,  # 2 keeps the stride of res5 at 16 (DC5)
        }
    )
    # Any model of the timm package that offers its features (build_timm_backbone).
    cfg.MODEL.TIMM = CfgNode(
        {
            "NAME": "resnet18",
            "PRETRAINED": False,  # download timm's weights; never when MODEL.WEIGHTS is given
            "OUT_FEATURES": ["res5"],  # res<n> has stride 2^n
            "NORM": "BN",  # or "FrozenBN"
        }
    )
    # FCOS as Detectron2 has it, which offers it to Python configs only.
    cfg.MODEL.FCOS = CfgNode(
        {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "NORM": "GN",
            "PRIOR_PROB": 0.01,
            "CENTER_SAMPLING_RADIUS": 1.5,  # strides
            "FOCAL_LOSS_ALPHA": 0.25,
            "FOCAL_LOSS_GAMMA": 2.0,
            "SCORE_THRESH_TEST": 0.2,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.6,
        }
    )


def _add_input_config(cfg: CfgNode) -> None:
    # Your own data in COCO format: a json and the folder that its file names are relative to. When
    # given, they replace DATASETS.TRAIN and TEST, and set the number of classes of the model.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""

    # In the order of their use; each is off as it stands here.
    # Four images in one, with this probability: (height, width) of the result, and where the four
    # meet, as a share of them.
    cfg.INPUT.MOSAIC = CfgNode({"PROB": 0.0, "SIZE": (640, 640), "CENTER_RANGE": (0.2, 0.8)})
    # Move each side of the image in or out by up to this share of its length.
    cfg.INPUT.JITTER_CROP = CfgNode({"RATIO": 0.0})
    # Resize to (height, width) whatever the aspect ratio, in place of MIN_SIZE_*; () is off. In
    # training both are multiplied by one number from SCALE_JITTER.
    cfg.INPUT.FIXED_SIZE = CfgNode({"TRAIN": (), "TEST": (), "SCALE_JITTER": (1.0, 1.0)})
    # Up to HUE of the colour circle to either side, and up to these factors, or one over them.
    cfg.INPUT.COLOR_DISTORTION = CfgNode(
        {"PROB": 0.0, "HUE": 0.1, "SATURATION": 1.5, "EXPOSURE": 1.5}
    )
    # Shift image and boxes by up to so many pixels, with this probability.
    cfg.INPUT.RANDOM_SHIFT = CfgNode({"PROB": 0.0, "MAX_PIXELS": 32})
