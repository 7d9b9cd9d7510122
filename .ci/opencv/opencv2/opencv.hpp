// Stands in for OpenCV's umbrella header, which FFCV includes to call cv::resize. The real one needs every
// module of libopencv-dev: 300 more packages, 180 MB and 40 s of set-up. Found through opencv4.pc beside this.
#pragma once
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
